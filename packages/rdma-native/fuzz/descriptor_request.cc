// The descriptor socket: what a pod sends in the place of its ticket, or of what it gives for an offer. Only the whole, right ticket gets
// descriptors, once, and only the right giving of one is taken; everything else is refused in JSON, and no descriptor that came along stays
// open.
// Input: a byte that says how many descriptors come along, then the message.
#include <dirent.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <limits>
#include <memory>

#include "agent/descriptor_server.h"
#include "base/json.h"
#include "fuzz.h"

namespace weightline::fuzz {

namespace {

constexpr const char* kId = "00000000000000000000000000000001";
constexpr size_t kMostAlong = 4;
constexpr int kCountEvery = 256;

std::string socketPath() { return privateFolder() + "/fd.sock"; }

// The ticket of every input: the same bytes, granted anew.
Bytes rightMessage() {
  Bytes message = bytesOf("WLFD");
  message.resize(8);
  message[4] = 1;
  for (uint8_t i = 0; i < 48; i++) message.push_back(static_cast<uint8_t>(i * 5 + 1));
  return message;
}

// A giving of segment 3 with 4096 bytes, by the ticket of an offer.
Bytes rightGiving() {
  Bytes message = rightMessage();
  std::copy_n("WLGV", 4, message.begin());
  message.resize(72);
  message[56] = 1;
  message[60] = 3;
  message[65] = 16;
  return message;
}

size_t openDescriptors() {
  const std::unique_ptr<DIR, int (*)(DIR*)> folder(::opendir("/proc/self/fd"), ::closedir);
  size_t count = 0;
  while (::readdir(folder.get()) != nullptr) count++;
  return count;
}

DescriptorServer& server() {
  // What is given is answered at once, and let go.
  static DescriptorServer* made = nullptr;
  if (made != nullptr) return *made;
  const auto answerGiven = [](std::unique_ptr<DescriptorEvent> event) {
    if (event->kind != DescriptorEvent::Kind::kGiven) return;
    made->answer(event->given.connection, "{\"ok\":true}", "");
  };
  // However often this process is refused.
  const RefusalGauge patient(std::numeric_limits<double>::infinity());
  made = new DescriptorServer(socketPath(), std::make_shared<StoreView>(privateFolder(), ""), answerGiven, patient);
  return *made;
}

void grant() {
  const Bytes message = rightMessage();
  DescriptorGrant grant;
  std::copy_n(message.begin() + 8, grant.ticketId.size(), grant.ticketId.begin());
  std::copy_n(message.begin() + 24, grant.secret.size(), grant.secret.begin());
  grant.pid = ::getpid();
  grant.expires = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  grant.holdingId = kId;
  grant.paths = {"layout"};
  server().grant(grant);
  OfferGrant offer;
  offer.ticketId = grant.ticketId;
  offer.secret = grant.secret;
  offer.pid = grant.pid;
  offer.offer = "offer";
  server().grantOffer(offer);
}

void send(int socket, std::span<const uint8_t> message, size_t along) {
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * kMostAlong)> control{};
  iovec piece{const_cast<uint8_t*>(message.data()), message.size()};
  msghdr sent{};
  sent.msg_iov = &piece;
  sent.msg_iovlen = 1;
  if (along > 0) {
    sent.msg_control = control.data();
    sent.msg_controllen = CMSG_SPACE(sizeof(int) * along);
    cmsghdr* header = CMSG_FIRSTHDR(&sent);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * along);
    for (size_t i = 0; i < along; i++) std::memcpy(CMSG_DATA(header) + i * sizeof(int), &socket, sizeof(int));
  }
  ::sendmsg(socket, &sent, MSG_NOSIGNAL);
}

// Descriptors that came with the answer; they are closed.
size_t receive(int socket, std::string& answer) {
  answer.resize(4096);
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * 16)> control{};
  iovec piece{answer.data(), answer.size()};
  msghdr received{};
  received.msg_iov = &piece;
  received.msg_iovlen = 1;
  received.msg_control = control.data();
  received.msg_controllen = control.size();
  const ssize_t n = ::recvmsg(socket, &received, MSG_CMSG_CLOEXEC);
  answer.resize(n > 0 ? static_cast<size_t>(n) : 0);
  size_t count = 0;
  for (cmsghdr* header = n > 0 ? CMSG_FIRSTHDR(&received) : nullptr; header != nullptr; header = CMSG_NXTHDR(&received, header)) {
    for (size_t i = 0; i < (header->cmsg_len - CMSG_LEN(0)) / sizeof(int); i++, count++) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof(int));
      ::close(fd);
    }
  }
  return count;
}

}  // namespace

Target describe() {
  Target target;
  target.name = "descriptor_request";
  target.guided = false;
  target.maxBytes = 1024;
  const Bytes right = rightMessage();
  for (const uint8_t along : {uint8_t{0}, uint8_t{0}, uint8_t{0}, uint8_t{1}}) {
    Bytes input = {along};
    input.insert(input.end(), right.begin(), right.end());
    target.seeds.push_back(input);
  }
  const Bytes giving = rightGiving();
  for (const uint8_t along : {uint8_t{1}, uint8_t{1}, uint8_t{0}, uint8_t{2}}) {
    Bytes input = {along};
    input.insert(input.end(), giving.begin(), giving.end());
    target.seeds.push_back(input);
  }
  target.seeds.push_back({0, 'W', 'L', 'F', 'D', 2, 0, 0, 0});
  target.tokens = {"WLFD", "WLGV", std::string("\1\0\0\0", 4), std::string("\2\0\0\0", 4)};
  std::filesystem::create_directories(privateFolder() + "/holdings/" + kId);
  const Descriptor file(::open((privateFolder() + "/holdings/" + kId + "/layout").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
  return target;
}

}  // namespace weightline::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  using namespace weightline;
  static size_t inputs = 0, before = 0;
  if (bytes < 1) return 0;
  const std::span<const uint8_t> message(data + 1, bytes - 1);
  fuzz::grant();
  {
    const Descriptor socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, fuzz::socketPath().c_str(), fuzz::socketPath().size() + 1);
    if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) fuzz::broken("the socket takes nobody");
    const size_t along = data[0] % (fuzz::kMostAlong + 1);
    fuzz::send(socket.get(), message, along);
    ::shutdown(socket.get(), SHUT_WR);
    std::string answer;
    const size_t got = fuzz::receive(socket.get(), answer);
    const fuzz::Bytes right = fuzz::rightMessage();
    const bool entitled = along == 0 && std::equal(message.begin(), message.end(), right.begin(), right.end());
    if (got != (entitled ? 1 : 0)) fuzz::broken("a message got " + std::to_string(got) + " descriptors");
    const json::Value refusal = answer.empty() || entitled ? json::Value{} : json::parse(answer);
    if (refusal.find("ok") != nullptr) {
      const fuzz::Bytes giving = fuzz::rightGiving();
      const bool mayGive = message.size() == giving.size() && std::equal(message.begin(), message.begin() + 56, giving.begin());
      if (!mayGive) fuzz::broken("a wrong giving was taken");
    } else if (!entitled && !answer.empty()) {
      for (const char* name : {"code", "message", "field"}) {
        if (refusal.find(name) == nullptr || refusal.find(name)->text.empty()) fuzz::broken("a refusal without " + std::string(name) + ": " + answer);
      }
    }
  }
  // The server closes what it has when it sees that the client has gone.
  if (++inputs % fuzz::kCountEvery != 0) return 0;
  size_t open = fuzz::openDescriptors();
  for (int tries = 0; before != 0 && open > before && tries < 100; tries++) {
    ::usleep(10'000);
    open = fuzz::openDescriptors();
  }
  if (before != 0 && open > before) fuzz::broken("descriptors stay open: " + std::to_string(before) + ", then " + std::to_string(open));
  before = before == 0 ? open : std::min(before, open);
  return 0;
}
