// The JSON reader: what it takes has one meaning, whole or member by member, and can be written and read again.
#include "base/json.h"

#include "base/utf8.h"
#include "fuzz.h"

namespace weightline::fuzz {

namespace {

using json::Value;

std::string write(const Value& value) {
  switch (value.type) {
    case Value::Type::kNull: return "null";
    case Value::Type::kBool: return value.boolean ? "true" : "false";
    case Value::Type::kInteger: return std::to_string(value.integer);
    case Value::Type::kNumber: return value.text;
    case Value::Type::kString:
      if (!validUtf8(value.text)) broken("a string that is not UTF-8");
      return json::quote(value.text);
    case Value::Type::kArray: {
      std::string text = "[";
      for (const Value& entry : value.array) text += (text.size() > 1 ? "," : "") + write(entry);
      return text + "]";
    }
    case Value::Type::kObject: {
      std::string text = "{";
      for (const auto& [name, entry] : value.object) text += (text.size() > 1 ? "," : "") + json::quote(name) + ":" + write(entry);
      return text + "}";
    }
  }
  return "";
}

}  // namespace

Target describe() {
  Target target;
  target.name = "json";
  for (const char* text : {R"({"a":[1,2,{"b":null}],"c":"é\n\u0041\ud83d\ude00","d":-1.5e+10,"e":true,"a":false})", R"([])", R"( {"x" : 18446744073709551615, "y":18446744073709551616, "":0} )",
                           R"("text")", R"([[[[[[[[[[[[[[[[0]]]]]]]]]]]]]]]])"}) {
    target.seeds.push_back(bytesOf(text));
  }
  std::string deep = "1";
  for (int i = 0; i < json::kMaxDepth; i++) deep = "[" + deep + "]";
  target.seeds.push_back(bytesOf(deep));
  target.tokens = {"{", "}", "[", "]", "\"", ":", ",", "\\u", "\\ud800", "\\udc00", "\\u0000", "\\\"", "true", "false", "null", "-", "1e", "0.", "\xef\xbb\xbf", "\xf4\x90\x80\x80", "\xed\xa0\x80", "[[[[[[[[[[[[[[[["};
  return target;
}

}  // namespace weightline::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  using namespace weightline;
  const std::string_view text = fuzz::textOf({data, bytes});
  std::string whole, members = "{";
  bool object = false;
  try {
    const json::Value value = json::parse(text);
    object = value.is(json::Value::Type::kObject);
    whole = fuzz::write(value);
    if (fuzz::write(json::parse(whole)) != whole) fuzz::broken("what was written is not what was read: " + whole);
  } catch (const Fault& fault) {
    if (fault.code() != Code::kCorrupt || !validUtf8(fault.what())) fuzz::broken(fault.what());
  }
  try {
    json::parseMembers(text, [&](std::string name, json::Value value) { members += (members.size() > 1 ? "," : "") + json::quote(name) + ":" + fuzz::write(value); });
    if (!object || members + "}" != whole) fuzz::broken("member by member it means something else: " + members + "}");
  } catch (const Fault& fault) {
    if (object) fuzz::broken(std::string("whole it is taken, member by member not: ") + fault.what());
  }
  return 0;
}
