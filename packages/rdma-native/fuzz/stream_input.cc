#include "stream_input.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace weightline::fuzz {

Session sessionOf(std::span<const uint8_t> input) {
  if (input.size() < kSessionBytes) return {};
  Session session;
  session.choice = input[0];
  session.opening = static_cast<Opening>(input[1] % 4);
  session.at = input[2];
  session.change = static_cast<uint8_t>(input[3] | 1);
  session.frames = input.subspan(kSessionBytes);
  return session;
}

Bytes sessionInput(uint8_t choice, Opening opening, std::span<const Bytes> frames) {
  Bytes input = {choice, static_cast<uint8_t>(opening), 5, 1};
  for (const Bytes& frame : frames) input.insert(input.end(), frame.begin(), frame.end());
  return input;
}

Bytes frameBytes(FrameType type, uint64_t number, std::span<const uint8_t> payload, const DigestValue& digest) {
  const FrameBytes header = encodeFrame({type, static_cast<uint32_t>(payload.size()), number, digest});
  Bytes frame(header.begin(), header.end());
  frame.insert(frame.end(), payload.begin(), payload.end());
  return frame;
}

void mendSession(Bytes& input, Random& random) {
  for (size_t at = kSessionBytes; at + kFrameHeaderBytes <= input.size();) {
    uint8_t* header = input.data() + at;
    if (!random.oneIn(8)) header[0] = static_cast<uint8_t>(1 + (header[0] + 8) % 9);
    if (!random.oneIn(8)) std::fill_n(header + 1, 3, uint8_t{0});
    const size_t left = input.size() - at - kFrameHeaderBytes;
    size_t payload = getU32(header + 4);
    if (payload > left) {
      payload = left;
      putU32(header + 4, static_cast<uint32_t>(payload));
    }
    if (header[0] == static_cast<uint8_t>(FrameType::kChunk) && random.oneIn(2)) {
      const DigestValue digest = digestOf(Algorithm::kXxh3, {header + kFrameHeaderBytes, payload});
      std::memcpy(header + 16, digest.data(), digest.size());
    }
    at += kFrameHeaderBytes + payload;
  }
}

std::vector<std::string> sessionTokens() {
  std::vector<std::string> tokens = {"WLST", "WLLAYOUT", "NotFound\n", "Corrupt\nit is damaged"};
  for (uint8_t type = 1; type <= 9; type++) {
    const Bytes frame = frameBytes(static_cast<FrameType>(type), 0, {});
    tokens.emplace_back(frame.begin(), frame.end());
  }
  return tokens;
}

const Layout& smallLayout() {
  static const Layout layout = [] {
    Layout made;
    made.segments = {{100, "a.json"}, {0, "b.empty"}, {300, "c/model.safetensors"}};
    made.chunkBytes = chunkBytesFor(made.totalBytes());
    made.items = {{"w", "U8", {200}, 2, 100, 200, 0}};
    return made;
  }();
  return layout;
}

const Bytes& smallBytes() {
  static const Bytes bytes = [] {
    Bytes made(smallLayout().totalBytes());
    for (size_t i = 0; i < made.size(); i++) made[i] = static_cast<uint8_t>(i * 7 + i / 251);
    return made;
  }();
  return bytes;
}

DigestValue proofOf(const Secret& secret, std::string_view label, const Hello& hello, const Answer& answer) {
  Bytes said(label.begin(), label.end());
  said.insert(said.end(), hello.begin(), hello.end());
  said.insert(said.end(), answer.begin() + 4, answer.begin() + 6);
  said.insert(said.end(), answer.begin() + 8, answer.begin() + 40);
  return hmacSha256(secret, said);
}

bool sendAll(int socket, std::span<const uint8_t> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::send(socket, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n <= 0) return false;
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
  return true;
}

bool receiveAll(int socket, std::span<uint8_t> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::recv(socket, bytes.data(), bytes.size(), 0);
    if (n <= 0) return false;
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
  return true;
}

size_t drain(int socket) {
  std::array<uint8_t, 65536> buffer;
  size_t total = 0;
  for (ssize_t n = 0; (n = ::recv(socket, buffer.data(), buffer.size(), 0)) > 0;) total += static_cast<size_t>(n);
  return total;
}

}  // namespace weightline::fuzz
