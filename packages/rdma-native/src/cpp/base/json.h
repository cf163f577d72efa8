// A strict JSON reader for texts that somebody else wrote: members keep their order and their duplicates, whole numbers
// up to 2^64 - 1 stay exact, depth is bounded, text must be UTF-8.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace weightline::json {

inline constexpr int kMaxDepth = 64;

struct Value;
using Members = std::vector<std::pair<std::string, Value>>;

struct Value {
  enum class Type { kNull, kBool, kInteger, kNumber, kString, kArray, kObject };
  Type type = Type::kNull;
  bool boolean = false;
  uint64_t integer = 0;  // kInteger: a whole number without sign, fraction or exponent that fits
  std::string text;      // kString; kNumber: as it was written
  std::vector<Value> array;
  Members object;

  bool is(Type t) const { return type == t; }
  // The first member of that name, or null.
  const Value* find(std::string_view name) const;
};

// Throws Corrupt with the byte's position and what was wrong.
Value parse(std::string_view text);

// Reads an object member by member, so that a text of a hundred megabytes needs the memory of one member at a time.
void parseMembers(std::string_view text, const std::function<void(std::string name, Value value)>& take);

// A string in quotes, escaped as contract.md says: `"`, `\`, \b \t \n \f \r, \u00xx below 0x20; all else raw.
std::string quote(std::string_view text);

}  // namespace weightline::json
