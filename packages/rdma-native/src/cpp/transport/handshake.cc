#include "transport/handshake.h"

#include <sys/random.h>

#include <algorithm>
#include <cstring>
#include <string_view>
#include <vector>

#include "base/fault.h"

namespace weightline {

namespace {

constexpr std::string_view kMagic = "WLST";
constexpr size_t kHelloBytes = 56;
constexpr size_t kAnswerBytes = 72;
constexpr size_t kNonceBytes = 32;

using Hello = std::array<uint8_t, kHelloBytes>;
using Answer = std::array<uint8_t, kAnswerBytes>;

// MAC over what both sides have seen: a replayed half of another opening never fits.
DigestValue mac(const Secret& secret, std::string_view label, const Hello& hello, const Answer& answer) {
  std::vector<uint8_t> data(label.begin(), label.end());
  data.insert(data.end(), hello.begin(), hello.end());
  data.insert(data.end(), answer.begin() + 4, answer.begin() + 6);
  data.insert(data.end(), answer.begin() + 8, answer.begin() + 8 + kNonceBytes);
  return hmacSha256(secret, data);
}

bool equalInConstantTime(const uint8_t* a, const uint8_t* b, size_t bytes) {
  uint8_t difference = 0;
  for (size_t i = 0; i < bytes; i++) difference = static_cast<uint8_t>(difference | (a[i] ^ b[i]));
  return difference == 0;
}

[[noreturn]] void refuse(const Connection& connection, const std::string& why) {
  throw Fault(Code::kPermissionDenied, "the peer " + connection.peer() + " " + why).field("ticket");
}

}  // namespace

void randomBytes(std::span<uint8_t> bytes) {
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t n = ::getrandom(bytes.data() + done, bytes.size() - done, 0);
    if (n > 0) done += static_cast<size_t>(n);
  }
}

void openAsChild(Connection& connection, const TicketId& id, const Secret& secret, const Cancel& cancel) {
  Hello hello{};
  std::memcpy(hello.data(), kMagic.data(), kMagic.size());
  putU16(hello.data() + 4, kMinStreamVersion);
  putU16(hello.data() + 6, kMaxStreamVersion);
  std::memcpy(hello.data() + 8, id.data(), id.size());
  randomBytes(std::span(hello).subspan(24));
  connection.send(hello, kOpeningMs, cancel);

  Answer answer{};
  connection.receive(answer, kOpeningMs, cancel);
  if (std::memcmp(answer.data(), kMagic.data(), kMagic.size()) != 0) refuse(connection, "does not speak the stream protocol");
  const uint16_t version = getU16(answer.data() + 4);
  if (version < kMinStreamVersion || version > kMaxStreamVersion) {
    throw Fault(Code::kRefused, "the peer " + connection.peer() + " chose stream version " + std::to_string(version) + "; this mover speaks " +
                                    std::to_string(kMinStreamVersion) + " to " + std::to_string(kMaxStreamVersion))
        .field("version").value(std::to_string(version)).wayOut("upgrade the older agent");
  }
  const DigestValue expected = mac(secret, "parent", hello, answer);
  if (!equalInConstantTime(expected.data(), answer.data() + 40, expected.size())) refuse(connection, "does not know this ticket");
  const DigestValue own = mac(secret, "child", hello, answer);
  connection.send(own, kOpeningMs, cancel);
}

TicketId openAsParent(Connection& connection, const TicketOffice& office, const Cancel& cancel) {
  Hello hello{};
  connection.receive(hello, kOpeningMs, cancel);
  if (std::memcmp(hello.data(), kMagic.data(), kMagic.size()) != 0) refuse(connection, "does not speak the stream protocol");
  TicketId id{};
  std::memcpy(id.data(), hello.data() + 8, id.size());
  const uint16_t lowest = getU16(hello.data() + 4), highest = getU16(hello.data() + 6);
  const bool common = lowest <= kMaxStreamVersion && highest >= kMinStreamVersion && lowest <= highest;
  const std::optional<Secret> secret = office.secretOf(id);

  Answer answer{};
  std::memcpy(answer.data(), kMagic.data(), kMagic.size());
  putU16(answer.data() + 4, common ? std::min(highest, kMaxStreamVersion) : 0);
  randomBytes(std::span(answer).subspan(8));
  if (secret) {
    const DigestValue own = mac(*secret, "parent", hello, answer);
    std::memcpy(answer.data() + 40, own.data(), own.size());
  }
  connection.send(answer, kOpeningMs, cancel);
  if (!common) refuse(connection, "speaks no stream version of ours");

  DigestValue proof{};
  connection.receive(proof, kOpeningMs, cancel);
  if (!secret) refuse(connection, "has no live ticket");
  const DigestValue expected = mac(*secret, "child", hello, answer);
  if (!equalInConstantTime(expected.data(), proof.data(), proof.size())) refuse(connection, "does not know the ticket's secret");
  if (!office.consume(id)) refuse(connection, "came with a used ticket");
  return id;
}

}  // namespace weightline
