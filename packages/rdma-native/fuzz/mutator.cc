#include "mutator.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace weightline::fuzz {

namespace {

constexpr size_t kMaxChanges = 6;

constexpr std::array<uint64_t, 26> kNumbers = {
    0, 1, 2, 7, 8, 15, 16, 17, 127, 128, 255, 256, 511, 512, 4096, 65535, 65536, 1 << 20, 0x7fffffff, 0x80000000, 0xffffffff, 0x100000000,
    1ull << 53, 0x7fffffffffffffff, 0x8000000000000000, 0xffffffffffffffff};
constexpr std::array<std::string_view, 14> kWrittenNumbers = {
    "0", "1", "-1", "00", "1.5", "1e9", "9007199254740993", "2147483648", "4294967296", "9223372036854775807", "9223372036854775808", "18446744073709551615", "18446744073709551616",
    "99999999999999999999999"};

uint64_t someNumber(Random& random) {
  const uint64_t number = kNumbers[random.below(kNumbers.size())];
  return random.oneIn(3) ? number + random.below(3) - 1 : number;
}

struct Range {
  size_t from, bytes;
};

Range someRange(const Bytes& input, Random& random, size_t most = 256) {
  const size_t from = random.below(input.size());
  return {from, std::min(input.size() - from, 1 + random.below(random.oneIn(4) ? most : 16))};
}

using Place = Bytes::difference_type;

void insert(Bytes& input, size_t at, std::span<const uint8_t> piece) { input.insert(input.begin() + static_cast<Place>(at), piece.begin(), piece.end()); }

void erase(Bytes& input, Range range) {
  input.erase(input.begin() + static_cast<Place>(range.from), input.begin() + static_cast<Place>(range.from + range.bytes));
}

void overwrite(Bytes& input, size_t at, std::span<const uint8_t> piece) {
  std::copy_n(piece.begin(), std::min(piece.size(), input.size() - at), input.begin() + static_cast<Place>(at));
}

void flipBit(Bytes& input, Random& random) { input[random.below(input.size())] ^= static_cast<uint8_t>(1u << random.below(8)); }

// A little-endian number of 1, 2, 4 or 8 bytes: a limit, or a small step from what is there.
void setNumber(Bytes& input, Random& random) {
  const size_t width = size_t{1} << random.below(4);
  if (input.size() < width) return;
  size_t at = random.below(input.size() - width + 1);
  if (random.oneIn(2)) at -= at % width;
  uint64_t number = 0;
  std::memcpy(&number, input.data() + at, width);
  number = random.oneIn(2) ? someNumber(random) : random.oneIn(2) ? number + random.below(17) - 8 : random.next();
  std::memcpy(input.data() + at, &number, width);
}

// A number that is written out in digits.
void setWrittenNumber(Bytes& input, Random& random) {
  const auto digit = [](uint8_t c) { return c >= '0' && c <= '9'; };
  const auto start = std::find_if(input.begin() + static_cast<Place>(random.below(input.size())), input.end(), digit);
  if (start == input.end()) return;
  const auto end = std::find_if_not(start, input.end(), digit);
  const size_t at = static_cast<size_t>(start - input.begin());
  erase(input, {at, static_cast<size_t>(end - start)});
  const std::string text = random.oneIn(2) ? std::string(kWrittenNumbers[random.below(kWrittenNumbers.size())]) : std::to_string(someNumber(random));
  insert(input, at, bytesOf(text));
}

void putToken(const Target& target, Bytes& input, Random& random) {
  if (target.tokens.empty()) return;
  const Bytes token = bytesOf(target.tokens[random.below(target.tokens.size())]);
  if (random.oneIn(2)) {
    insert(input, random.below(input.size() + 1), token);
  } else {
    overwrite(input, random.below(input.size()), token);
  }
}

// From one quotation mark or bracket to a later one: what is between is doubled, dropped, or moved.
void moveSection(Bytes& input, Random& random) {
  static constexpr std::string_view kMarks = "\"{}[],:";
  const auto mark = [&](size_t from) {
    const auto found = std::find_if(input.begin() + static_cast<Place>(from), input.end(), [](uint8_t c) { return kMarks.find(static_cast<char>(c)) != std::string_view::npos; });
    return static_cast<size_t>(found - input.begin());
  };
  const size_t from = mark(random.below(input.size()));
  if (from >= input.size()) return;
  const size_t to = mark(std::min(input.size(), from + 1 + random.below(64)));
  if (to >= input.size() || to <= from) return;
  const Bytes piece(input.begin() + static_cast<Place>(from), input.begin() + static_cast<Place>(to));
  if (random.oneIn(2)) erase(input, {from, to - from});
  if (!random.oneIn(3)) insert(input, mark(random.below(input.size() + 1)), piece);
}

void splice(Bytes& input, const Bytes& other, Random& random) {
  if (other.empty()) return;
  if (random.oneIn(4)) {
    input.resize(random.below(input.size() + 1));
    const size_t from = random.below(other.size());
    input.insert(input.end(), other.begin() + static_cast<Place>(from), other.end());
    return;
  }
  const Range range = someRange(other, random);
  const std::span piece(other.data() + range.from, range.bytes);
  if (random.oneIn(2)) {
    insert(input, random.below(input.size() + 1), piece);
  } else {
    overwrite(input, random.below(input.size()), piece);
  }
}

void change(const Target& target, Bytes& input, const Bytes& other, Random& random) {
  if (input.empty()) {
    input = other;
    return;
  }
  const Range range = someRange(input, random);
  const Bytes piece(input.begin() + static_cast<Place>(range.from), input.begin() + static_cast<Place>(range.from + range.bytes));
  switch (random.below(13)) {
    case 0: flipBit(input, random); break;
    case 1: input[random.below(input.size())] = static_cast<uint8_t>(random.next()); break;
    case 2: setNumber(input, random); break;
    case 3: setNumber(input, random); break;
    case 4: setWrittenNumber(input, random); break;
    case 5: setWrittenNumber(input, random); break;
    case 6: erase(input, range); break;
    case 7: insert(input, random.oneIn(2) ? range.from : random.below(input.size() + 1), piece); break;
    case 8: overwrite(input, random.below(input.size()), piece); break;
    case 9: input.resize(random.oneIn(8) ? random.below(input.size() + 1) : input.size() - random.below(std::min<size_t>(input.size(), 16))); break;
    case 10: putToken(target, input, random); break;
    case 11: moveSection(input, random); break;
    default: splice(input, other, random); break;
  }
}

}  // namespace

Bytes mutate(const Target& target, const Bytes& input, const Bytes& other, Random& random) {
  Bytes changed = input;
  for (size_t changes = 1 + random.below(kMaxChanges); changes > 0; changes--) change(target, changed, other, random);
  if (changed.size() > target.maxBytes) changed.resize(target.maxBytes);
  // Most inputs must get past the first checks; some must not.
  if (target.mend && !random.oneIn(4)) target.mend(changed, random);
  if (changed.size() > target.maxBytes) changed.resize(target.maxBytes);
  return changed;
}

}  // namespace weightline::fuzz
