// Sessions of the stream as inputs: four bytes that say how the session is opened, then the frames that one side sends.
#pragma once

#include <sys/socket.h>

#include "digest/digest.h"
#include "fuzz.h"
#include "layout/layout.h"
#include "transport/frame.h"
#include "transport/handshake.h"

namespace weightline::fuzz {

// What happens to the opening.
enum class Opening : uint8_t { kRight, kOtherWord, kOtherProof, kNone };

struct Session {
  uint8_t choice = 0;  // of the target
  Opening opening = Opening::kRight;
  uint8_t at = 0, change = 1;  // which byte of the word or proof is changed, and how
  std::span<const uint8_t> frames;
};
inline constexpr size_t kSessionBytes = 4;

// Nothing for an input that is too short.
Session sessionOf(std::span<const uint8_t> input);
Bytes sessionInput(uint8_t choice, Opening opening, std::span<const Bytes> frames);
Bytes frameBytes(FrameType type, uint64_t number, std::span<const uint8_t> payload, const DigestValue& digest = {});
// Makes the frames' lengths fit what is there, and some chunks' digests right.
void mendSession(Bytes& input, Random& random);
std::vector<std::string> sessionTokens();

// A small object of three segments, one of them empty, and its bytes.
const Layout& smallLayout();
const Bytes& smallBytes();

// The opening's messages by hand, as PROTOCOL.md gives them.
using Hello = std::array<uint8_t, 56>;
using Answer = std::array<uint8_t, 72>;
DigestValue proofOf(const Secret& secret, std::string_view label, const Hello& hello, const Answer& answer);

// Blocking; the driver's limit ends what hangs. False when the other side has closed.
bool sendAll(int socket, std::span<const uint8_t> bytes);
bool receiveAll(int socket, std::span<uint8_t> bytes);
// Reads until the other side closes; gives the count of bytes.
size_t drain(int socket);

}  // namespace weightline::fuzz
