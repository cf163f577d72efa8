// Digests of chunks, layouts and objects: XXH3-128 by the xxHash header, whose vector code is chosen when the program runs,
// and SHA-256 by libcrypto's symbols, which Node exports to addons.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace weightline {

enum class Algorithm : uint8_t { kXxh3, kSha256 };

// "xxh3-128" or "sha-256"; throws InvalidArgument for others.
Algorithm parseAlgorithm(std::string_view name);
std::string_view algorithmName(Algorithm algorithm);
// 16 for XXH3-128, 32 for SHA-256.
constexpr size_t digestBytes(Algorithm algorithm) { return algorithm == Algorithm::kXxh3 ? 16 : 32; }

// A digest of either kind; an XXH3-128 (canonical, big-endian) fills the first 16 bytes and leaves zeros after.
using DigestValue = std::array<uint8_t, 32>;

// Of one piece of memory.
DigestValue digestOf(Algorithm algorithm, std::span<const uint8_t> data);

// A digest that is fed piece by piece. One thread at a time.
class Digester {
 public:
  explicit Digester(Algorithm algorithm);
  ~Digester();
  Digester(const Digester&) = delete;
  Digester& operator=(const Digester&) = delete;
  void update(std::span<const uint8_t> data);
  // The digest of all that was fed; the digester is empty again.
  DigestValue finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// HMAC-SHA-256 (RFC 2104).
DigestValue hmacSha256(std::span<const uint8_t> key, std::span<const uint8_t> data);

// Lowercase hex.
std::string toHex(std::span<const uint8_t> bytes);

}  // namespace weightline
