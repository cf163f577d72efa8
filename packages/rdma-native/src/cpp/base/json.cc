#include "base/json.h"

#include "base/fault.h"
#include "base/utf8.h"

namespace weightline::json {

namespace {

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Value document() {
    Value value = this->value(0);
    space();
    if (at_ != text_.size()) fail("something follows the value");
    return value;
  }

  void documentMembers(const std::function<void(std::string, Value)>& take) {
    space();
    members(0, take);
    space();
    if (at_ != text_.size()) fail("something follows the object");
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw Fault(Code::kCorrupt, "not valid JSON at byte " + std::to_string(at_) + ": " + what).value(std::to_string(at_));
  }
  void space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\n' || text_[at_] == '\r')) at_++;
  }
  char peek() {
    if (at_ >= text_.size()) fail("the text ends too early");
    return text_[at_];
  }
  void expect(char c) {
    if (peek() != c) fail(std::string("'") + c + "' is missing");
    at_++;
  }
  bool take(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  Value value(int depth) {
    if (depth > kMaxDepth) fail("nested deeper than " + std::to_string(kMaxDepth));
    space();
    Value value;
    const char c = peek();
    if (c == '{') {
      object(value, depth);
    } else if (c == '[') {
      array(value, depth);
    } else if (c == '"') {
      value.type = Value::Type::kString;
      value.text = string();
    } else if (take("true") || take("false")) {
      value.type = Value::Type::kBool;
      value.boolean = c == 't';
    } else if (!take("null")) {
      number(value);
    }
    return value;
  }

  void object(Value& value, int depth) {
    value.type = Value::Type::kObject;
    members(depth, [&](std::string name, Value member) { value.object.emplace_back(std::move(name), std::move(member)); });
  }

  template <typename Take>
  void members(int depth, const Take& take) {
    expect('{');
    space();
    if (peek() == '}') {
      at_++;
      return;
    }
    while (true) {
      space();
      if (peek() != '"') fail("a member's name must be a string");
      std::string name = string();
      space();
      expect(':');
      take(std::move(name), this->value(depth + 1));
      space();
      if (peek() == '}') break;
      expect(',');
    }
    at_++;
  }

  void array(Value& value, int depth) {
    value.type = Value::Type::kArray;
    expect('[');
    space();
    if (peek() == ']') {
      at_++;
      return;
    }
    while (true) {
      value.array.push_back(this->value(depth + 1));
      space();
      if (peek() == ']') break;
      expect(',');
    }
    at_++;
  }

  uint32_t hex4() {
    if (text_.size() - at_ < 4) fail("\\u needs four hex digits");
    uint32_t unit = 0;
    for (int i = 0; i < 4; i++) {
      const char c = text_[at_++];
      unit <<= 4;
      if (c >= '0' && c <= '9') unit |= static_cast<uint32_t>(c - '0');
      else if (c >= 'a' && c <= 'f') unit |= static_cast<uint32_t>(c - 'a' + 10);
      else if (c >= 'A' && c <= 'F') unit |= static_cast<uint32_t>(c - 'A' + 10);
      else fail("\\u needs four hex digits");
    }
    return unit;
  }

  void escape(std::string& out) {
    const char c = peek();
    at_++;
    static constexpr std::string_view kFrom = "\"\\/bfnrt", kTo = "\"\\/\b\f\n\r\t";
    if (const size_t found = kFrom.find(c); found != std::string_view::npos) {
      out += kTo[found];
      return;
    }
    if (c != 'u') fail("an unknown escape");
    uint32_t point = hex4();
    if (point >= 0xd800 && point <= 0xdbff) {
      if (!take("\\u")) fail("half a surrogate pair");
      const uint32_t low = hex4();
      if (low < 0xdc00 || low > 0xdfff) fail("half a surrogate pair");
      point = 0x10000 + ((point - 0xd800) << 10) + (low - 0xdc00);
    } else if (point >= 0xdc00 && point <= 0xdfff) {
      fail("half a surrogate pair");
    }
    appendUtf8(out, point);
  }

  std::string string() {
    expect('"');
    std::string out;
    const size_t start = at_;
    while (peek() != '"') {
      const char c = text_[at_];
      if (static_cast<unsigned char>(c) < 0x20) fail("a control character in a string");
      at_++;
      if (c == '\\') escape(out);
      else out += c;
    }
    at_++;
    if (!validUtf8(text_.substr(start, at_ - 1 - start))) fail("a string that is not UTF-8");
    return out;
  }

  void digits() {
    if (at_ >= text_.size() || text_[at_] < '0' || text_[at_] > '9') fail("a value is missing or not known");
    while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') at_++;
  }

  void number(Value& value) {
    const size_t start = at_;
    bool whole = true;
    if (peek() == '-') {
      whole = false;
      at_++;
    }
    const size_t first = at_;
    digits();
    if (text_[first] == '0' && at_ - first > 1) fail("a number with a leading zero");
    if (at_ < text_.size() && text_[at_] == '.') {
      whole = false;
      at_++;
      digits();
    }
    if (at_ < text_.size() && (text_[at_] == 'e' || text_[at_] == 'E')) {
      whole = false;
      at_++;
      if (at_ < text_.size() && (text_[at_] == '+' || text_[at_] == '-')) at_++;
      digits();
    }
    value.type = Value::Type::kNumber;
    value.text = std::string(text_.substr(start, at_ - start));
    if (!whole) return;
    for (const char c : value.text) {
      if (__builtin_mul_overflow(value.integer, uint64_t{10}, &value.integer) ||
          __builtin_add_overflow(value.integer, static_cast<uint64_t>(c - '0'), &value.integer)) {
        value.integer = 0;
        return;
      }
    }
    value.type = Value::Type::kInteger;
  }

  const std::string_view text_;
  size_t at_ = 0;
};

}  // namespace

const Value* Value::find(std::string_view name) const {
  for (const auto& [key, value] : object) {
    if (key == name) return &value;
  }
  return nullptr;
}

Value parse(std::string_view text) { return Parser(text).document(); }

void parseMembers(std::string_view text, const std::function<void(std::string, Value)>& take) { Parser(text).documentMembers(take); }

std::string quote(std::string_view text) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string out = "\"";
  for (const char c : text) {
    switch (c) {
      case '"': out += "\\\""; break;
      case '\\': out += "\\\\"; break;
      case '\b': out += "\\b"; break;
      case '\t': out += "\\t"; break;
      case '\n': out += "\\n"; break;
      case '\f': out += "\\f"; break;
      case '\r': out += "\\r"; break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          out += "\\u00";
          out += kDigits[c >> 4];
          out += kDigits[c & 15];
        } else {
          out += c;
        }
    }
  }
  return out + "\"";
}

}  // namespace weightline::json
