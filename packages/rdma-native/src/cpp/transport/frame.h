// Messages of the stream between movers, as PROTOCOL.md gives them.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <span>

#include "digest/digest.h"

namespace weightline {

inline constexpr uint16_t kMinStreamVersion = 1;
inline constexpr uint16_t kMaxStreamVersion = 1;
inline constexpr size_t kFrameHeaderBytes = 48;
inline constexpr size_t kMaxControlPayloadBytes = 4096;
inline constexpr size_t kMaxDataPayloadBytes = 1 << 20;
// Chunks that one GET may ask for, and GETs that may be outstanding.
inline constexpr uint32_t kMaxChunksPerGet = 1024;
inline constexpr size_t kMaxOutstandingGets = 64;
// A parent that heard nothing of the origin for so long waits in vain: a chain of hundreds passes such news on in less.
inline constexpr std::chrono::milliseconds kOriginSilence{30'000};
// More is told as this: no arithmetic overflows with it.
inline constexpr uint64_t kMaxOriginAgeMs = 86'400'000;
inline constexpr size_t kTicketIdBytes = 16;
inline constexpr size_t kSecretBytes = 32;

enum class FrameType : uint8_t {
  kGetLayout = 1,
  kLayout = 2,
  kGet = 3,
  kChunk = 4,
  kWaiting = 5,
  kRefused = 6,
  kGetObject = 7,
  kObject = 8,
  kFailed = 9,
};

struct FrameHeader {
  FrameType type{};
  uint32_t payloadBytes = 0;
  uint64_t number = 0;
  DigestValue digest{};
};

using FrameBytes = std::array<uint8_t, kFrameHeaderBytes>;
FrameBytes encodeFrame(const FrameHeader& header);
// Throws Corrupt for an unknown type, non-zero reserved bytes, or a payload above its limit.
FrameHeader decodeFrame(std::span<const uint8_t, kFrameHeaderBytes> bytes);

void putU16(uint8_t* at, uint16_t value);
void putU32(uint8_t* at, uint32_t value);
void putU64(uint8_t* at, uint64_t value);
uint16_t getU16(const uint8_t* at);
uint32_t getU32(const uint8_t* at);
uint64_t getU64(const uint8_t* at);

}  // namespace weightline
