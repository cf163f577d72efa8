#include "safetensors_input.h"

#include <cstring>

namespace weightline::fuzz {

Bytes safetensorsFile(std::string_view header, uint64_t dataBytes) {
  Bytes file(8);
  const uint64_t length = header.size();
  std::memcpy(file.data(), &length, sizeof(length));
  file.insert(file.end(), header.begin(), header.end());
  for (uint64_t i = 0; i < dataBytes; i++) file.push_back(static_cast<uint8_t>('A' + i % 26));
  return file;
}

std::vector<std::pair<std::string, uint64_t>> safetensorsSeeds() {
  return {
      {R"({"w":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"__metadata__":{"format":"pt"}})", 16},
      {R"({"__metadata__":null,"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"b":{"dtype":"F8_E4M3","shape":[0],"data_offsets":[16,16]},"c":{"dtype":"F16","shape":[2],"data_offsets":[16,20]}}    )", 20},
      {R"({"__proto__":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a/b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]},"":{"dtype":"U8","shape":[],"data_offsets":[2,3]},"\u005f\u005fx":{"dtype":"BOOL","shape":[1],"data_offsets":[3,4]}})", 4},
      {R"({"p":{"dtype":"F4","shape":[2,8],"data_offsets":[0,8]},"q":{"dtype":"F8_E8M0","shape":[3],"data_offsets":[8,11]},"r":{"dtype":"F5_NEW","shape":[7],"data_offsets":[11,12]}})", 12},
      {R"({"big":{"dtype":"U8","shape":[2415919104],"data_offsets":[0,2415919104]},"tail":{"dtype":"I64","shape":[1],"data_offsets":[2415919104,2415919112]}})", 2415919112},
      {"{}", 0},
  };
}

std::vector<std::string> safetensorsTokens() {
  return {"{\"", "\":{\"dtype\":\"", "\"dtype\":", "\"shape\":[", "\"data_offsets\":[", "__metadata__", "\"U8\"", "\"F4\"", "\"F64\"", "\"C64\"", "\"F6_E2M3\"", "[0,0]", "[0]", "[]", "null", "}}", "{}", "18446744073709551615",
          "9223372036854775808", "version https://git-lfs.github.com/spec/", "\nsize ", "\\u0000", "\\ud800", "\xff", "    "};
}

void mendSafetensors(Bytes& input, size_t at) {
  if (input.size() < at + 8) return;
  const std::string_view text = textOf(std::span<const uint8_t>(input).subspan(at + 8));
  size_t end = text.rfind('}');
  if (end == std::string_view::npos) return;
  end++;
  while (end < text.size() && text[end] == ' ') end++;
  const uint64_t length = end;
  std::memcpy(input.data() + at, &length, sizeof(length));
}

}  // namespace weightline::fuzz
