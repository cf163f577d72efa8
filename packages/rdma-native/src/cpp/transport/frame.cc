#include "transport/frame.h"

#include <cstring>
#include <string>

#include "base/fault.h"

namespace weightline {

namespace {

template <typename T>
void put(uint8_t* at, T value) {
  for (size_t i = 0; i < sizeof(T); i++) at[i] = static_cast<uint8_t>(value >> (8 * i));
}

template <typename T>
T get(const uint8_t* at) {
  T value = 0;
  for (size_t i = 0; i < sizeof(T); i++) value = static_cast<T>(value | static_cast<T>(at[i]) << (8 * i));
  return value;
}

}  // namespace

void putU16(uint8_t* at, uint16_t value) { put(at, value); }
void putU32(uint8_t* at, uint32_t value) { put(at, value); }
void putU64(uint8_t* at, uint64_t value) { put(at, value); }
uint16_t getU16(const uint8_t* at) { return get<uint16_t>(at); }
uint32_t getU32(const uint8_t* at) { return get<uint32_t>(at); }
uint64_t getU64(const uint8_t* at) { return get<uint64_t>(at); }

FrameBytes encodeFrame(const FrameHeader& header) {
  FrameBytes bytes{};
  bytes[0] = static_cast<uint8_t>(header.type);
  put(bytes.data() + 4, header.payloadBytes);
  put(bytes.data() + 8, header.number);
  std::memcpy(bytes.data() + 16, header.digest.data(), header.digest.size());
  return bytes;
}

FrameHeader decodeFrame(std::span<const uint8_t, kFrameHeaderBytes> bytes) {
  FrameHeader header;
  const uint8_t type = bytes[0];
  if (type < static_cast<uint8_t>(FrameType::kGetLayout) || type > static_cast<uint8_t>(FrameType::kFailed) || bytes[1] != 0 ||
      bytes[2] != 0 || bytes[3] != 0) {
    throw Fault(Code::kCorrupt, "the peer sent a frame of unknown type " + std::to_string(type)).field("frame.type").value(std::to_string(type));
  }
  header.type = static_cast<FrameType>(type);
  header.payloadBytes = get<uint32_t>(bytes.data() + 4);
  header.number = get<uint64_t>(bytes.data() + 8);
  std::memcpy(header.digest.data(), bytes.data() + 16, header.digest.size());
  const bool data = header.type == FrameType::kChunk || header.type == FrameType::kLayout;
  const size_t limit = data ? kMaxDataPayloadBytes : kMaxControlPayloadBytes;
  if (header.payloadBytes > limit) {
    throw Fault(Code::kCorrupt, "the peer announced a frame of " + std::to_string(header.payloadBytes) + " bytes; at most " + std::to_string(limit) + " are allowed")
        .field("frame.payload").value(std::to_string(header.payloadBytes)).limit(std::to_string(limit));
  }
  return header;
}

}  // namespace weightline
