// The mover: orders from JavaScript objects, reports to them.
#include <algorithm>

#include "binding/event_source.h"
#include "binding/support.h"
#include "mover/mover.h"

namespace weightline::binding {

namespace {

template <size_t N>
std::array<uint8_t, N> exactly(const Napi::Object& object, const char* name) {
  const std::vector<uint8_t> bytes = bytesArgument(field(object, name), name);
  if (bytes.size() != N) throw Fault(Code::kInvalidArgument, std::string(name) + " has " + std::to_string(bytes.size()) + " bytes, not " + std::to_string(N)).field(name);
  std::array<uint8_t, N> out{};
  std::copy(bytes.begin(), bytes.end(), out.begin());
  return out;
}

// 32 bytes, or none when the array is empty.
std::optional<DigestValue> optionalDigest(const Napi::Object& object, const char* name) {
  if (bytesArgument(field(object, name), name).empty()) return std::nullopt;
  return exactly<32>(object, name);
}

StreamTicket ticketOf(const Napi::Object& object) { return {exactly<kTicketIdBytes>(object, "id"), exactly<kSecretBytes>(object, "secret")}; }

LoadOrder loadOrder(const Napi::Object& object) {
  LoadOrder order;
  order.threads = uint32Argument(field(object, "threads"), "threads");
  const auto list = field(object, "files").As<Napi::Array>();
  for (uint32_t i = 0; i < list.Length(); i++) {
    const auto entry = list.Get(i).As<Napi::Object>();
    order.files.push_back({stringArgument(field(entry, "path"), "files.path"), stringArgument(field(entry, "source"), "files.source"),
                           uint64Argument(field(entry, "bytes"), "files.bytes"), int64Argument(field(entry, "mtimeNs"), "files.mtimeNs"),
                           uint64Argument(field(entry, "inode"), "files.inode"), uint64Argument(field(entry, "device"), "files.device")});
  }
  return order;
}

GivenMemory givenMemory(const Napi::Object& object) {
  return {static_cast<pid_t>(uint32Argument(field(object, "agent"), "memory.agent")), uint32Argument(field(object, "descriptor"), "memory.descriptor"),
          uint64Argument(field(object, "bytes"), "memory.bytes")};
}

PullOrder pullOrder(const Napi::Object& object) {
  PullOrder order;
  order.parentHoldingId = stringArgument(field(object, "parentHoldingId"), "parentHoldingId");
  order.peer.endpoint = stringArgument(field(object, "endpoint"), "endpoint");
  order.peer.layoutDigest = exactly<32>(object, "layoutDigest");
  order.peer.layoutBytes = uint64Argument(field(object, "layoutBytes"), "layoutBytes");
  order.peer.totalBytes = uint64Argument(field(object, "totalBytes"), "totalBytes");
  order.peer.stallMs = static_cast<int>(std::min<uint32_t>(uint32Argument(field(object, "stallMs"), "stallMs"), 3'600'000));
  order.objectDigest = optionalDigest(object, "objectDigest");
  const auto list = field(object, "tickets").As<Napi::Array>();
  for (uint32_t i = 0; i < list.Length() && i < 16; i++) order.peer.tickets.push_back(ticketOf(list.Get(i).As<Napi::Object>()));
  return order;
}

CheckOrder checkOrder(const Napi::Object& object) {
  CheckOrder order;
  order.trustFlag = boolArgument(field(object, "trustFlag"), "trustFlag");
  order.objectDigest = optionalDigest(object, "objectDigest");
  const auto list = field(object, "chunks").As<Napi::Array>();
  for (uint32_t i = 0; i < list.Length(); i++) order.chunks.push_back(uint64Argument(list.Get(i), "chunks"));
  return order;
}

Order orderOf(const Napi::Object& object) {
  Order order;
  order.id = uint32Argument(field(object, "id"), "id");
  const std::string kind = stringArgument(field(object, "kind"), "kind");
  if (kind == "cancel") {
    order.what = CancelOrder{uint32Argument(field(object, "orderId"), "orderId")};
    return order;
  }
  order.holdingId = stringArgument(field(object, "holdingId"), "holdingId");
  if (kind == "scan") {
    order.what = ScanOrder{stringArgument(field(object, "path"), "path"), stringArgument(field(object, "loadRoot"), "loadRoot"),
                           parseAlgorithm(stringArgument(field(object, "algorithm"), "algorithm"))};
  } else if (kind == "load") {
    order.what = loadOrder(object);
  } else if (kind == "arrange") {
    order.what = ArrangeOrder{givenMemory(field(object, "memory").As<Napi::Object>()), parseAlgorithm(stringArgument(field(object, "algorithm"), "algorithm"))};
  } else if (kind == "copy") {
    order.what = CopyOrder{uint32Argument(field(object, "segment"), "segment"), givenMemory(field(object, "memory").As<Napi::Object>()), uint32Argument(field(object, "threads"), "threads")};
  } else if (kind == "finish") {
    order.what = FinishOrder{};
  } else if (kind == "pull") {
    order.what = pullOrder(object);
  } else if (kind == "check") {
    order.what = checkOrder(object);
  } else if (kind == "repair") {
    order.what = RepairOrder{};
  } else if (kind == "evict") {
    order.what = EvictOrder{boolArgument(field(object, "onlyIfFree"), "onlyIfFree")};
  } else if (kind == "grant") {
    order.what = GrantOrder{ticketOf(field(object, "ticket").As<Napi::Object>()), uint32Argument(field(object, "ttlMs"), "ttlMs"), stringArgument(field(object, "child"), "child")};
  } else if (kind == "revoke") {
    order.what = RevokeOrder{};
  } else {
    throw Fault(Code::kInvalidArgument, "orders of kind \"" + kind + "\" are not known to this mover").field("kind").value(kind).wayOut("agent and mover must be of one build");
  }
  return order;
}

Napi::BigInt big(Napi::Env env, uint64_t value) { return Napi::BigInt::New(env, value); }

Napi::Array strings(Napi::Env env, const std::vector<std::string>& list) {
  auto array = Napi::Array::New(env, list.size());
  for (uint32_t i = 0; i < list.size(); i++) array.Set(i, list[i]);
  return array;
}

Napi::Object toScanResult(Napi::Env env, const OrderResult& result) {
  const ScanResult& scanned = *result.scanned;
  auto object = Napi::Object::New(env);
  object.Set("kind", scanned.layout.kind);
  object.Set("layoutDigest", toBuffer(env, result.layoutDigest.data(), result.layoutDigest.size()));
  object.Set("layoutBytes", big(env, result.layoutBytes));
  object.Set("totalBytes", big(env, scanned.layout.totalBytes()));
  object.Set("chunkBytes", static_cast<double>(scanned.layout.chunkBytes));
  object.Set("itemCount", big(env, scanned.layout.items.size()));
  auto list = Napi::Array::New(env, scanned.files.size());
  for (uint32_t i = 0; i < scanned.files.size(); i++) {
    const SourceFile& file = scanned.files[i];
    auto entry = Napi::Object::New(env);
    entry.Set("path", file.path);
    entry.Set("source", file.source);
    entry.Set("bytes", big(env, file.bytes));
    entry.Set("mtimeNs", Napi::BigInt::New(env, file.mtimeNs));
    entry.Set("inode", big(env, file.inode));
    entry.Set("device", big(env, file.device));
    list.Set(i, entry);
  }
  object.Set("files", list);
  object.Set("ignoredFiles", strings(env, scanned.ignoredFiles));
  object.Set("warnings", strings(env, scanned.warnings));
  object.Set("extraTensors", big(env, scanned.extraTensors));
  object.Set("snapshotRevision", scanned.snapshotRevision);
  return object;
}

const char* kindName(Report::Kind kind) {
  switch (kind) {
    case Report::Kind::kProgress: return "progress";
    case Report::Kind::kDone: return "done";
    case Report::Kind::kFailed: return "failed";
    case Report::Kind::kServed: return "served";
    case Report::Kind::kDamage: return "damage";
  }
  return "";
}

Napi::Value toReport(Napi::Env env, Report& report) {
  auto object = Napi::Object::New(env);
  object.Set("id", report.id);
  object.Set("kind", kindName(report.kind));
  object.Set("holdingId", report.holdingId);
  object.Set("verifiedBytes", big(env, report.verifiedBytes));
  object.Set("totalBytes", big(env, report.totalBytes));
  object.Set("networkBytes", big(env, report.networkBytes));
  object.Set("readBytes", big(env, report.readBytes));
  object.Set("verifiedChunks", big(env, report.verifiedChunks));
  object.Set("refusedChunks", big(env, report.refusedChunks));
  auto waits = Napi::Object::New(env);
  waits.Set("parentSeconds", report.parentSeconds);
  waits.Set("wireSeconds", report.wireSeconds);
  waits.Set("verifySeconds", report.verifySeconds);
  waits.Set("storeSeconds", report.storeSeconds);
  object.Set("waits", waits);
  const OrderResult& result = report.result;
  if (result.scanned) object.Set("scanned", toScanResult(env, result));
  if (result.objectDigest) object.Set("objectDigest", toBuffer(env, result.objectDigest->data(), result.objectDigest->size()));
  if (result.freedBytes) object.Set("freedBytes", big(env, *result.freedBytes));
  if (result.wrongChunks) {
    auto list = Napi::Array::New(env, result.wrongChunks->size());
    for (uint32_t i = 0; i < result.wrongChunks->size(); i++) list.Set(i, big(env, (*result.wrongChunks)[i]));
    object.Set("wrongChunks", list);
  }
  if (report.kind == Report::Kind::kServed) {
    object.Set("sentBytes", big(env, report.sentBytes));
    object.Set("sentChunks", big(env, report.sentChunks));
    object.Set("child", report.child);
  }
  if (report.fault) {
    object.Set("fault", toFaultObject(env, *report.fault));
    object.Set("distrustPeer", report.distrustPeer);
  }
  return object;
}

// The mover, its reports, and what stops both when the environment ends.
struct MoverHandle {
  static constexpr const char* kName = "mover";
  static constexpr napi_type_tag kTag = {0x57656967684c696e, 0x05};
  std::shared_ptr<EventSource<Report>> reports;
  std::unique_ptr<Mover> mover;
  std::unique_ptr<CleanupHook> hook;

  void stop() {
    mover.reset();
    reports->close();
  }
  ~MoverHandle() {
    hook.reset();
    stop();
  }
};

Napi::Value createMover(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const auto object = info[0].As<Napi::Object>();
    if (!info[1].IsFunction()) throw Fault(Code::kInvalidArgument, "onReport must be a function").field("onReport");
    MoverOptions options;
    options.store = stringArgument(field(object, "store"), "store");
    const uint32_t port = uint32Argument(field(object, "port"), "port");
    if (port > UINT16_MAX) throw Fault(Code::kInvalidArgument, "port " + std::to_string(port) + " is above 65535").field("port").value(std::to_string(port)).limit("65535");
    options.port = static_cast<uint16_t>(port);
    const auto bind = field(object, "bind").As<Napi::Array>();
    for (uint32_t i = 0; i < bind.Length(); i++) options.bind.push_back(stringArgument(bind.Get(i), "bind"));
    auto handle = std::make_shared<MoverHandle>();
    handle->reports = std::make_shared<EventSource<Report>>(info.Env(), info[1].As<Napi::Function>(), "mover reports", toReport);
    handle->mover = std::make_unique<Mover>(std::move(options), [reports = handle->reports](std::unique_ptr<Report> report) { reports->post(std::move(report)); });
    handle->hook = std::make_unique<CleanupHook>(info.Env(), [raw = handle.get()] { raw->stop(); });
    return makeHandle(info.Env(), handle);
  });
}

Napi::Value moverAddress(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value { return Napi::String::New(info.Env(), openHandle<MoverHandle>(info[0])->mover->address()); });
}

Napi::Value moverOrder(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const auto handle = openHandle<MoverHandle>(info[0]);
    handle->mover->order(orderOf(info[1].As<Napi::Object>()));
    return info.Env().Undefined();
  });
}

Napi::Value closeMover(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    handleArgument<MoverHandle>(info[0]).reset();
    return info.Env().Undefined();
  });
}

}  // namespace

void registerMover(Napi::Env env, Napi::Object exports) {
  exports.Set("createMover", Napi::Function::New(env, createMover));
  exports.Set("moverAddress", Napi::Function::New(env, moverAddress));
  exports.Set("moverOrder", Napi::Function::New(env, moverOrder));
  exports.Set("closeMover", Napi::Function::New(env, closeMover));
}

}  // namespace weightline::binding
