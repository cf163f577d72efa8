// What a fuzz target gives to whoever drives it: our own driver (driver.cc), or libFuzzer, which needs the entry point alone.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/fault.h"

// Runs one input. Returns when it has been refused or taken as it should; anything else ends the process.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes);

namespace weightline::fuzz {

using Bytes = std::vector<uint8_t>;

// A generator whose numbers depend on the seed alone (splitmix64).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
  }
  // 0 to limit - 1; 0 for a limit of 0.
  size_t below(size_t limit) { return limit == 0 ? 0 : static_cast<size_t>(next() % limit); }
  bool oneIn(size_t n) { return below(n) == 0; }

 private:
  uint64_t state_;
};

struct Target {
  std::string name;
  std::vector<Bytes> seeds;         // right inputs, made by our own encoders
  std::vector<std::string> tokens;  // words of the format
  size_t maxBytes = 4096;
  // Puts right again what every reader checks first (lengths, digests), so that a mutation reaches what comes after.
  std::function<void(Bytes&, Random&)> mend;
  // False where threads make the covered code differ from run to run: then new code does not steer what is tried.
  bool guided = true;
};

// Each target file has one.
Target describe();

// The program did what it must not: says it and ends, so that the input is kept.
[[noreturn]] void broken(const std::string& what);

// What was thrown must be a fault of one of these codes that names its field, in words that are text.
void expectFault(const Fault& fault, std::initializer_list<Code> codes);

// A folder on tmpfs of this run's own, which goes when the run ends.
const std::string& privateFolder();

inline std::string_view textOf(std::span<const uint8_t> bytes) { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }
inline Bytes bytesOf(std::string_view text) { return {text.begin(), text.end()}; }

}  // namespace weightline::fuzz
