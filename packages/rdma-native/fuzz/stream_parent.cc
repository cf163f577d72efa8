// The parent's side of a stream: children open rightly and send what they like, or do not open rightly. Each session ends, nobody
// without a proof hears a frame, a right holding is never called damaged, and a child that behaves is served in between.
#include <arpa/inet.h>
#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "stream_input.h"
#include "transport/stream_server.h"

namespace weightline::fuzz {

namespace {

constexpr std::chrono::seconds kTicketTime{10};
constexpr int kBehavedEvery = 64;
constexpr uint64_t kChunk = kMinChunkBytes;

// Three holdings: complete, filling (its second chunk is missing), complete with a wrong byte.
constexpr std::array<const char*, 3> kIds = {"00000000000000000000000000000001", "00000000000000000000000000000002", "00000000000000000000000000000003"};

Layout layoutOfParent() {
  Layout layout;
  layout.segments = {{100, "a.json"}, {0, "b.empty"}, {kChunk + 300, "model.safetensors"}};
  layout.items = {{"w", "U8", {kChunk}, 2, 100, kChunk, 0}};
  return layout;
}

class Parent {
 public:
  Parent() {
    std::filesystem::create_directories(privateFolder() + "/holdings");
    for (size_t i = 0; i < kIds.size(); i++) holdings_[i] = make(kIds[i], i == 1);
    std::vector<uint8_t> wrong = {0xff};
    files::writeFully(Descriptor(files::openBelow(files::openFolder(holdingFolder(privateFolder(), kIds[2])).get(), "files/a.json", O_RDWR)).get(), wrong.data(), 1, 50, "a.json");
    StreamServerOptions options;
    options.bind = {"127.0.0.1"};
    options.holding = [this](const std::string& id) { return holdings_.at(static_cast<size_t>(id.back() - '1')); };
    options.onDamage = [](const std::string& id, uint64_t chunk) {
      if (id != kIds[2] || chunk != 0) broken("a right chunk was called damaged");
    };
    server_ = std::make_unique<StreamServer>(std::move(options));
  }

  StreamTicket grant(size_t holding) {
    StreamTicket ticket;
    const uint64_t number = ++tickets_;
    std::memcpy(ticket.id.data(), &number, sizeof(number));
    ticket.secret.fill(static_cast<uint8_t>(number));
    server_->grant(ticket, kIds[holding], "child", kTicketTime);
    return ticket;
  }

  Descriptor dial() const {
    Descriptor socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(std::atoi(parseHostPort(server_->address()).port.c_str())));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) broken(std::string("the server takes no connection: ") + std::strerror(errno));
    return socket;
  }

  // A child as it should be gets everything, and right.
  void serveOne() {
    StreamPeer peer;
    peer.endpoint = server_->address();
    peer.tickets = {grant(0), grant(0)};
    peer.layoutDigest = holdings_[0]->layoutDigest();
    peer.layoutBytes = holdings_[0]->layoutBytes();
    peer.totalBytes = holdings_[0]->geometry().totalBytes();
    StreamSource source(peer);
    FillCounters counters;
    Cancel cancel;
    const std::string id = "000000000000000000000000000000ff";
    const auto holding = Holding::create(privateFolder(), id, source.fetchLayout(counters, cancel));
    holding->beginFill();
    RunCursor cursor(*holding);
    FillContext context{*holding, cursor, counters, cancel};
    source.fill(context);
    holding->endFill(nullptr);
    if (source.fetchObjectDigest(counters, cancel) != holdings_[0]->objectDigest() || holding->objectDigest() != holdings_[0]->objectDigest()) broken("a child got another object");
    std::filesystem::remove_all(holdingFolder(privateFolder(), id));
    server_->takeServed();
  }

 private:
  static std::shared_ptr<Holding> make(const std::string& id, bool half) {
    const auto holding = Holding::create(privateFolder(), id, encodeLayout(layoutOfParent()));
    holding->beginFill();
    std::vector<uint8_t> bytes(kChunk);
    for (size_t i = 0; i < bytes.size(); i++) bytes[i] = static_cast<uint8_t>(i * 11);
    for (uint64_t chunk = 0; chunk < holding->geometry().chunkCount(); chunk++) {
      if (half && chunk == 1) continue;
      const std::span<const uint8_t> payload(bytes.data(), holding->geometry().place(chunk).bytes);
      const DigestValue digest = digestOf(Algorithm::kXxh3, payload);
      holding->writeChunks(chunk, payload, std::span(&digest, 1));
    }
    holding->endFill(nullptr);
    if (!half) holding->markComplete(holding->objectDigest());
    return holding;
  }

  std::array<std::shared_ptr<Holding>, kIds.size()> holdings_;
  std::unique_ptr<StreamServer> server_;
  uint64_t tickets_ = 0;
};

Parent& parent() {
  static Parent* const made = new Parent;
  return *made;
}

// Opens as the input says. False when the parent must not say more.
bool open(int socket, const Session& session, const StreamTicket& ticket) {
  Hello hello{};
  std::memcpy(hello.data(), "WLST", 4);
  putU16(hello.data() + 4, kMinStreamVersion);
  putU16(hello.data() + 6, kMaxStreamVersion);
  std::memcpy(hello.data() + 8, ticket.id.data(), ticket.id.size());
  hello.back() = session.at;
  bool right = true;
  if (session.opening == Opening::kOtherWord) {
    uint8_t& byte = hello[session.at % hello.size()];
    byte = static_cast<uint8_t>(byte ^ session.change);
    // Another nonce is as good, and another version range may be.
    right = session.at % hello.size() >= 24 || (session.at % hello.size() >= 4 && session.at % hello.size() < 8);
  }
  Answer answer{};
  if (!sendAll(socket, hello) || !receiveAll(socket, answer)) return false;
  DigestValue proof = proofOf(ticket.secret, "child", hello, answer);
  if (session.opening == Opening::kOtherProof) {
    uint8_t& byte = proof[session.at % proof.size()];
    byte = static_cast<uint8_t>(byte ^ session.change);
    right = false;
  }
  sendAll(socket, proof);
  return right;
}

}  // namespace

Target describe() {
  Target target;
  target.name = "stream_parent";
  target.guided = false;
  Bytes count(4);
  putU32(count.data(), 2);
  const Bytes one = {1, 0, 0, 0};
  const std::vector<Bytes> whole = {frameBytes(FrameType::kGetLayout, 0, {}), frameBytes(FrameType::kGet, 0, one), frameBytes(FrameType::kGet, 1, count), frameBytes(FrameType::kGetObject, 0, {})};
  const std::vector<Bytes> refusal = {frameBytes(FrameType::kGet, 0, one), frameBytes(FrameType::kRefused, 0, {})};
  const std::vector<Bytes> many(kMaxOutstandingGets + 2, frameBytes(FrameType::kGet, 0, one));
  // The holding that is being filled is one in many: each of its sessions waits 50 ms.
  for (int i = 0; i < 4; i++) {
    for (const auto& frames : {whole, refusal, many}) target.seeds.push_back(sessionInput(0, Opening::kRight, frames));
    target.seeds.push_back(sessionInput(9, Opening::kRight, refusal));
    for (const Opening opening : {Opening::kOtherWord, Opening::kOtherProof, Opening::kNone}) target.seeds.push_back(sessionInput(0, opening, whole));
  }
  target.seeds.push_back(sessionInput(8, Opening::kRight, whole));
  target.tokens = sessionTokens();
  target.mend = mendSession;
  privateFolder();
  return target;
}

}  // namespace weightline::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  using namespace weightline;
  static int inputs = 0;
  fuzz::Parent& parent = fuzz::parent();
  if (inputs++ % fuzz::kBehavedEvery == 0) parent.serveOne();
  const fuzz::Session session = fuzz::sessionOf({data, bytes});
  // Mostly the complete one: for a missing chunk the parent waits.
  const size_t holding = session.choice < 8 ? 0 : session.choice < 9 ? 1 : session.choice < 128 ? 2 : 0;
  const Descriptor socket = parent.dial();
  bool served = false;
  if (session.opening != fuzz::Opening::kNone) served = fuzz::open(socket.get(), session, parent.grant(holding));
  fuzz::sendAll(socket.get(), session.frames);
  ::shutdown(socket.get(), SHUT_WR);
  const size_t heard = fuzz::drain(socket.get());
  const size_t allowed = session.opening == fuzz::Opening::kNone ? sizeof(fuzz::Answer) : 0;
  if (!served && heard > allowed) fuzz::broken("a stranger heard " + std::to_string(heard) + " bytes");
  return 0;
}
