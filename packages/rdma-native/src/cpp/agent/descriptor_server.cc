#include "agent/descriptor_server.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <cstring>

#include "agent/process.h"
#include "base/fault.h"
#include "base/json.h"
#include "transport/frame.h"

namespace weightline {

namespace {

using SteadyClock = std::chrono::steady_clock;

constexpr std::string_view kMagic = "WLFD";
// Gives a descriptor instead of asking for some: then u32 version, ticket id, secret, u32 what (0: the list of tensors,
// 1: a segment), u32 segment, u64 bytes, little-endian.
constexpr std::string_view kGiveMagic = "WLGV";
constexpr uint32_t kVersion = 1;
constexpr size_t kRequestBytes = 56;
constexpr size_t kGiveBytes = 72;
// Room for a later version's longer message, so that it is refused by its version.
constexpr size_t kReceiveBytes = 512;
constexpr int kTickMs = 100;
// A crowd that connects at once must not fill it: a client whose connect does not wait would be refused.
constexpr int kBacklog = 1024;

bool equalInConstantTime(const uint8_t* a, const uint8_t* b, size_t bytes) {
  uint8_t difference = 0;
  for (size_t i = 0; i < bytes; i++) difference = static_cast<uint8_t>(difference | (a[i] ^ b[i]));
  return difference == 0;
}

// The next message without what comes along: the kernel lets strangers' descriptors go before they are opened here, where
// closing one may wait for the process behind its file system. `withDescriptors` tells that there were some. `flags` as in
// recv(2).
ssize_t receiveAlone(int socket, uint8_t* data, size_t bytes, int flags, bool& withDescriptors) {
  iovec piece{data, bytes};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  const ssize_t n = ::recvmsg(socket, &message, MSG_DONTWAIT | flags);
  withDescriptors = n >= 0 && (message.msg_flags & MSG_CTRUNC) != 0;
  return n;
}

// The message that has been looked at, with its descriptors: as many as are expected, and one more to see that there are
// too many.
std::vector<Descriptor> receiveDescriptors(int socket, uint8_t* data, size_t bytes) {
  iovec piece{data, bytes};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * 2)> control{};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  std::vector<Descriptor> out;
  if (::recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) < 0) return out;
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; i++) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof(int));
      out.emplace_back(fd);
    }
  }
  return out;
}

bool isGiving(const uint8_t* message, size_t bytes) { return bytes >= kGiveMagic.size() && std::memcmp(message, kGiveMagic.data(), kGiveMagic.size()) == 0; }

void checkVersion(const uint8_t* message) {
  const uint32_t version = getU32(message + 4);
  if (version == kVersion) return;
  throw Fault(Code::kRefused, "descriptor protocol version " + std::to_string(version) + " is not spoken here").field("version").value(std::to_string(version)).limit(std::to_string(kVersion)).wayOut("upgrade the older of client and agent");
}

// One sentence for all reasons: a stranger must not learn which it was.
Fault wrongTicket(const std::string& wayOut) {
  return Fault(Code::kPermissionDenied, "this ticket is unknown, used, expired, or another process's").field("ticket").wayOut(wayOut);
}

}  // namespace

DescriptorServer::DescriptorServer(std::string path, std::shared_ptr<StoreView> view, OnEvent onEvent, RefusalGauge gauge)
    : path_(std::move(path)), view_(std::move(view)), onEvent_(std::move(onEvent)),
      listener_(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)), wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      spare_(::open("/dev/null", O_RDONLY | O_CLOEXEC)), gauge_(std::move(gauge)) {
  if (!listener_.valid() || !wake_.valid() || !spare_.valid()) throw systemFault(errno, "making the socket " + path_).field("--socket").value(path_);
  listen();
  thread_ = std::thread([this] { run(); });
}

void DescriptorServer::listen() {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path_.empty() || path_.size() >= sizeof(address.sun_path)) {
    throw Fault(Code::kInvalidArgument, "the socket path " + path_ + " has " + std::to_string(path_.size()) + " bytes; 1 to 107 fit").field("--socket").value(path_).limit("107");
  }
  std::memcpy(address.sun_path, path_.c_str(), path_.size() + 1);
  struct stat status {};
  if (::lstat(path_.c_str(), &status) == 0) {
    if (!S_ISSOCK(status.st_mode)) {
      throw Fault(Code::kAlreadyExists, path_ + " is there and is no socket").field("--socket").value(path_).wayOut("remove it, or give another --socket");
    }
    ::unlink(path_.c_str());
  }
  if (::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 || ::chmod(path_.c_str(), 0666) != 0 ||
      ::listen(listener_.get(), kBacklog) != 0 || ::lstat(path_.c_str(), &status) != 0) {
    throw systemFault(errno, "listening on " + path_).field("--socket").value(path_);
  }
  inode_ = status.st_ino;
}

DescriptorServer::~DescriptorServer() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  ::eventfd_write(wake_.get(), 1);
  thread_.join();
  // A successor may have put its own socket there.
  struct stat status {};
  if (::lstat(path_.c_str(), &status) == 0 && status.st_ino == inode_) ::unlink(path_.c_str());
}

void DescriptorServer::grant(DescriptorGrant grant) {
  if (grant.paths.empty() || grant.paths.size() > kMaxDescriptorsPerTicket) {
    throw Fault(Code::kInvalidArgument, "a ticket is for 1 to " + std::to_string(kMaxDescriptorsPerTicket) + " paths, not " + std::to_string(grant.paths.size())).field("paths").value(std::to_string(grant.paths.size())).limit(std::to_string(kMaxDescriptorsPerTicket));
  }
  std::lock_guard lock(mutex_);
  std::erase_if(grants_, [now = SteadyClock::now()](const auto& entry) { return entry.second.expires <= now; });
  if (grants_.size() >= kMaxDescriptorTickets) {
    throw Fault(Code::kResourceExhausted, "more than " + std::to_string(kMaxDescriptorTickets) + " descriptor tickets wait").field("tickets").limit(std::to_string(kMaxDescriptorTickets));
  }
  grants_[grant.ticketId] = std::move(grant);
}

void DescriptorServer::revoke(const std::string& holdingId) {
  std::lock_guard lock(mutex_);
  std::erase_if(grants_, [&](const auto& entry) { return entry.second.holdingId == holdingId; });
}

void DescriptorServer::grantOffer(OfferGrant grant) {
  std::lock_guard lock(mutex_);
  const auto id = grant.ticketId;
  offers_[id] = {std::move(grant), 0};
}

void DescriptorServer::revokeOffer(const std::string& offer) {
  std::lock_guard lock(mutex_);
  std::erase_if(offers_, [&](const auto& entry) { return entry.second.grant.offer == offer; });
}

void DescriptorServer::answer(uint64_t connection, std::string text, std::string layoutOf) {
  {
    std::lock_guard lock(mutex_);
    answers_.push_back({connection, std::move(text), std::move(layoutOf)});
  }
  ::eventfd_write(wake_.get(), 1);
}

void DescriptorServer::run() {
  follower_.emplace("wl-descriptors");
  while (true) {
    {
      std::lock_guard lock(mutex_);
      if (stop_) return;
    }
    try {
      serve();
    } catch (const std::exception&) {
      // Out of memory: those who wait are let go, and the socket stays.
      clients_.clear();
    }
  }
}

void DescriptorServer::serve() {
  std::vector<pollfd> entries = {{wake_.get(), POLLIN, 0}, {listener_.get(), POLLIN, 0}};
  std::vector<bool> held;
  int waitMs = clients_.empty() ? -1 : kTickMs;
  for (const Client& client : clients_) {
    held.push_back(client.silent() && gauge_.holds(client.pid));
    if (held.back()) waitMs = static_cast<int>(kRefusalInterval.count());
    const short wanted = client.congested || client.number != 0 || held.back() ? 0 : client.files.empty() ? POLLIN : POLLOUT;
    entries.push_back({client.socket.get(), wanted, 0});
  }
  ::poll(entries.data(), entries.size(), waitMs);
  size_t at = 0;
  for (auto client = clients_.begin(); client != clients_.end(); at++) {
    client = serve(*client, entries[at + 2].revents, held[at]) ? std::next(client) : clients_.erase(client);
  }
  if (entries[0].revents != 0) {
    eventfd_t count = 0;
    ::eventfd_read(wake_.get(), &count);
    sendAnswers();
  }
  // No more at a time than there is room for: each has a chance to speak before the next crowd.
  for (size_t i = 0; entries[1].revents != 0 && i < kMaxDescriptorConnections && accept(); i++) {
  }
  expire();
}

bool DescriptorServer::serve(Client& client, short events, bool held) {
  // Held or a giver that is being worked on: only looked at to see it leave.
  if (held || client.number != 0) return events == 0;
  if (events == 0 && !client.congested) return true;
  // Others of its process may have been refused since.
  if (client.silent() && gauge_.holds(client.pid)) return true;
  return client.files.empty() ? receive(client) : send(client);
}

bool DescriptorServer::accept() {
  Descriptor socket(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!socket.valid()) {
    if (errno == EMFILE || errno == ENFILE) turnAway();
    return false;
  }
  const pid_t pid = connectedPid(socket.get());
  follower_->connected(pid);
  const auto waits = [pid](const Client& client) { return client.pid == pid && client.silent(); };
  if (gauge_.holds(pid) && static_cast<size_t>(std::count_if(clients_.begin(), clients_.end(), waits)) >= kMaxHeldConnections) return true;
  if (clients_.size() >= kMaxDescriptorConnections) makeRoom();
  Client client;
  client.socket = std::move(socket);
  client.pid = pid;
  client.deadline = SteadyClock::now() + kDescriptorClientTime;
  clients_.push_back(std::move(client));
  return true;
}

void DescriptorServer::turnAway() {
  const Fault fault = systemFault(EMFILE, "the agent has no descriptor left for this connection").field("descriptors").wayOut("raise the agent's limit of open files");
  spare_.reset();
  Client client;
  client.socket = Descriptor(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (client.socket.valid()) {
    // Its message is taken first: a client that sends to a closed socket would not read why.
    pollfd entry{client.socket.get(), POLLIN, 0};
    ::poll(&entry, 1, kTickMs);
    std::array<uint8_t, kReceiveBytes> message{};
    [[maybe_unused]] const ssize_t n = ::recv(client.socket.get(), message.data(), message.size(), MSG_DONTWAIT);
    refuse(client, fault);
  } else {
    // Somebody was quicker: not at full speed again.
    std::this_thread::sleep_for(std::chrono::milliseconds(kTickMs));
  }
  client.socket.reset();
  spare_ = Descriptor(::open("/dev/null", O_RDONLY | O_CLOEXEC));
}

void DescriptorServer::makeRoom() {
  std::map<pid_t, size_t> silent;
  for (const Client& client : clients_) silent[client.pid] += client.silent() ? 1 : 0;
  const auto most = std::max_element(silent.begin(), silent.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  const auto goes = std::find_if(clients_.begin(), clients_.end(), [&](const Client& client) { return client.silent() && client.pid == most->first; });
  clients_.erase(goes == clients_.end() ? clients_.begin() : goes);
}

void DescriptorServer::expire() {
  const auto now = SteadyClock::now();
  for (auto client = clients_.begin(); client != clients_.end();) {
    if (client->deadline > now) {
      client++;
      continue;
    }
    if (client->congested) {
      refuse(*client, Fault(Code::kResourceExhausted, "too many descriptors are on their way to clients that do not take them").field("descriptors").wayOut("try again, and raise the agent's limit of open files"));
    } else if (!client->files.empty()) {
      report(*client, false, "the client did not take its descriptors in time");
    }
    client = clients_.erase(client);
  }
}

bool DescriptorServer::receive(Client& client) {
  std::array<uint8_t, kReceiveBytes> message{};
  const int socket = client.socket.get();
  try {
    bool withDescriptors = false;
    const ssize_t n = receiveAlone(socket, message.data(), message.size(), MSG_PEEK, withDescriptors);
    if (n < 0) return errno == EAGAIN || errno == EINTR;
    if (n == 0) return false;
    if (isGiving(message.data(), static_cast<size_t>(n))) return takeGiven(client, message.data(), static_cast<size_t>(n));
    receiveAlone(socket, message.data(), message.size(), 0, withDescriptors);
    if (withDescriptors) throw Fault(Code::kInvalidArgument, "a ticket comes without descriptors").field("message").wayOut("send the 56 bytes alone");
    const DescriptorGrant grant = take(client, message.data(), static_cast<size_t>(n));
    for (const std::string& path : grant.paths) client.files.push_back(view_->open(grant.holdingId, path));
    return send(client);
  } catch (const std::exception& error) {
    // What was only looked at goes away too: unread, it would take the answer with it.
    bool withDescriptors = false;
    receiveAlone(socket, message.data(), message.size(), 0, withDescriptors);
    refuse(client, error);
    return false;
  }
}

DescriptorGrant DescriptorServer::take(const Client& client, const uint8_t* message, size_t bytes) {
  if (bytes < kMagic.size() + 4 || std::memcmp(message, kMagic.data(), kMagic.size()) != 0) {
    throw Fault(Code::kInvalidArgument, "a ticket begins with `WLFD` or `WLGV` and a version").field("message").value(std::to_string(bytes) + " bytes").limit(std::to_string(kRequestBytes));
  }
  checkVersion(message);
  if (bytes != kRequestBytes) {
    throw Fault(Code::kInvalidArgument, "a ticket is `WLFD`, a version, an id and a secret: " + std::to_string(kRequestBytes) + " bytes, not " + std::to_string(bytes)).field("message").value(std::to_string(bytes)).limit(std::to_string(kRequestBytes));
  }
  std::array<uint8_t, 16> id{};
  std::memcpy(id.data(), message + 8, id.size());
  std::lock_guard lock(mutex_);
  const auto found = grants_.find(id);
  const bool right = found != grants_.end() && found->second.expires > SteadyClock::now() && found->second.pid == client.pid &&
                     equalInConstantTime(found->second.secret.data(), message + 24, found->second.secret.size());
  if (!right) throw wrongTicket("ask the agent to attach again");
  DescriptorGrant grant = std::move(found->second);
  grants_.erase(found);
  return grant;
}

bool DescriptorServer::takeGiven(Client& client, const uint8_t* message, size_t bytes) {
  if (bytes < kGiveMagic.size() + 4) throw Fault(Code::kInvalidArgument, "`WLGV` is followed by a version").field("message").value(std::to_string(bytes) + " bytes").limit(std::to_string(kGiveBytes));
  checkVersion(message);
  if (bytes != kGiveBytes) {
    throw Fault(Code::kInvalidArgument, "giving is `WLGV`, a version, an id, a secret, what, a segment and its bytes: " + std::to_string(kGiveBytes) + " bytes, not " + std::to_string(bytes)).field("message").value(std::to_string(bytes)).limit(std::to_string(kGiveBytes));
  }
  auto event = std::make_unique<DescriptorEvent>();
  event->kind = DescriptorEvent::Kind::kGiven;
  event->pid = client.pid;
  Given& given = event->given;
  const uint32_t what = getU32(message + 56);
  if (what > 1) throw Fault(Code::kInvalidArgument, "what is given is 0 (the list of tensors) or 1 (a segment), not " + std::to_string(what)).field("what").value(std::to_string(what)).limit("0 or 1");
  given.list = what == 0;
  given.segment = getU32(message + 60);
  given.bytes = getU64(message + 64);
  if (closer_.full()) throw Fault(Code::kResourceExhausted, "too many refused descriptors cannot be closed: the file systems behind them do not answer").field("descriptor").wayOut("end the pods that gave them");
  std::array<uint8_t, 16> id{};
  std::memcpy(id.data(), message + 8, id.size());
  {
    std::lock_guard lock(mutex_);
    const auto found = offers_.find(id);
    const bool right = found != offers_.end() && found->second.grant.pid == client.pid &&
                       equalInConstantTime(found->second.grant.secret.data(), message + 24, found->second.grant.secret.size());
    if (!right) throw wrongTicket("begin the offer again");
    if (found->second.working != 0) throw Fault(Code::kInUse, "the offer's last descriptor is still being worked on").field("descriptor").wayOut("wait for its answer");
    given.offer = found->second.grant.offer;
    given.connection = found->second.working = nextNumber_++;
  }
  std::array<uint8_t, kReceiveBytes> again{};
  std::vector<Descriptor> descriptors = receiveDescriptors(client.socket.get(), again.data(), again.size());
  event->descriptors = static_cast<uint32_t>(descriptors.size());
  // None, or too many: the agent answers that too, since it ends the offer.
  if (descriptors.size() == 1) given.memory = std::move(descriptors[0]);
  for (Descriptor& other : descriptors) closer_.close(std::move(other));
  client.number = given.connection;
  client.deadline = SteadyClock::time_point::max();
  onEvent_(std::move(event));
  return true;
}

void DescriptorServer::sendAnswers() {
  std::vector<Answer> answers;
  {
    std::lock_guard lock(mutex_);
    answers.swap(answers_);
    // Before the answer is sent: the next may be given as soon as it is read.
    for (const Answer& answer : answers) {
      for (auto& [id, offering] : offers_) {
        if (offering.working == answer.connection) offering.working = 0;
      }
    }
  }
  for (const Answer& answer : answers) {
    const auto client = std::find_if(clients_.begin(), clients_.end(), [&](const Client& c) { return c.number == answer.connection; });
    if (client == clients_.end()) continue;
    try {
      sendAnswer(*client, answer);
    } catch (const std::exception& error) {
      refuse(*client, error);
    }
    clients_.erase(client);
  }
}

void DescriptorServer::sendAnswer(Client& client, const Answer& answer) {
  const Descriptor layout = answer.layoutOf.empty() ? Descriptor() : view_->open(answer.layoutOf, "layout");
  sendText(client, answer.text, layout.get());
}

void DescriptorServer::sendText(Client& client, const std::string& text, int descriptor) {
  const int flags = MSG_DONTWAIT | MSG_NOSIGNAL;
  if (descriptor < 0) {
    ::send(client.socket.get(), text.data(), text.size(), flags);
    return;
  }
  iovec piece{const_cast<char*>(text.data()), text.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(header), &descriptor, sizeof(int));
  ::sendmsg(client.socket.get(), &message, flags);
}

bool DescriptorServer::send(Client& client) {
  while (client.sent < client.files.size()) {
    const size_t count = std::min(kMaxDescriptorsPerMessage, client.files.size() - client.sent);
    std::array<uint8_t, 8> body{};
    putU32(body.data(), static_cast<uint32_t>(client.files.size()));
    putU32(body.data() + 4, static_cast<uint32_t>(client.sent));
    iovec piece{body.data(), body.size()};
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * kMaxDescriptorsPerMessage)> control{};
    msghdr message{};
    message.msg_iov = &piece;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = CMSG_SPACE(sizeof(int) * count);
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * count);
    for (size_t i = 0; i < count; i++) {
      const int fd = client.files[client.sent + i].get();
      std::memcpy(CMSG_DATA(header) + i * sizeof(int), &fd, sizeof(int));
    }
    client.congested = false;
    if (::sendmsg(client.socket.get(), &message, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
      client.congested = errno == ETOOMANYREFS;
      if (errno == EAGAIN || errno == EINTR || client.congested) return true;
      report(client, false, "the client went away before it took its descriptors");
      return false;
    }
    client.sent += count;
    client.deadline = SteadyClock::now() + kDescriptorClientTime;
  }
  report(client, true, "");
  return false;
}

void DescriptorServer::report(const Client& client, bool sent, const std::string& reason) {
  auto event = std::make_unique<DescriptorEvent>();
  event->kind = sent ? DescriptorEvent::Kind::kSent : DescriptorEvent::Kind::kRefused;
  event->pid = client.pid;
  event->descriptors = static_cast<uint32_t>(client.sent);
  event->reason = reason;
  onEvent_(std::move(event));
}

void DescriptorServer::refuse(Client& client, const std::exception& error) {
  client.files.clear();
  const auto* fault = dynamic_cast<const Fault*>(&error);
  const std::string code(codeName(fault != nullptr ? fault->code() : Code::kInternal));
  std::string text = "{\"code\":" + json::quote(code) + ",\"message\":" + json::quote(error.what());
  if (fault != nullptr) {
    text += ",\"field\":" + json::quote(fault->field()) + ",\"value\":" + json::quote(fault->value()) + ",\"limit\":" + json::quote(fault->limit()) + ",\"way_out\":" + json::quote(fault->wayOut());
  }
  text += "}";
  sendText(client, text, -1);
  gauge_.refused(client.pid);
  report(client, false, error.what());
}

}  // namespace weightline
