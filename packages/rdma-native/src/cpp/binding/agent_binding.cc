// The store's lock and view, processes, and the descriptor socket.
#include <algorithm>

#include "agent/descriptor_server.h"
#include "agent/parent_death.h"
#include "agent/process.h"
#include "agent/process_watcher.h"
#include "agent/store_lock.h"
#include "agent/store_view.h"
#include "binding/event_source.h"
#include "binding/support.h"

namespace weightline::binding {

namespace {

// The environment's one process watcher, with the callbacks that are still to be made.
struct Watches {
  std::unique_ptr<ProcessWatcher> watcher;
  std::unique_ptr<CleanupHook> hook;
  std::map<Process*, std::shared_ptr<EventSource<int>>> sources;
};

Watches& watchesOf(Napi::Env env) {
  auto* watches = env.GetInstanceData<Watches>();
  if (watches->watcher) return *watches;
  watches->watcher = std::make_unique<ProcessWatcher>();
  watches->hook = std::make_unique<CleanupHook>(env, [watches] {
    watches->watcher.reset();
    for (auto& [process, source] : watches->sources) source->close();
  });
  return *watches;
}

void stopWatching(Napi::Env env, Process& process) {
  auto* watches = env.GetInstanceData<Watches>();
  if (process.watch == 0 || !watches->watcher) return;
  watches->watcher->remove(process.watch);
  process.watch = 0;
  const auto source = watches->sources.find(&process);
  if (source == watches->sources.end()) return;
  source->second->close();
  watches->sources.erase(source);
}

Napi::Value lockStoreCall(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const std::string path = stringArgument(info[0], "path");
    const uint32_t waitMs = uint32Argument(info[1], "waitMs");
    return PromiseWork<StoreLock>::start(
        info.Env(), [=] { return lockStore(path, waitMs); },
        [](Napi::Env env, StoreLock& lock) { return makeHandle(env, std::make_shared<StoreLock>(std::move(lock))); });
  });
}

Napi::Value storeLockDescriptor(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value { return Napi::Number::New(info.Env(), openHandle<StoreLock>(info[0])->descriptor.get()); });
}

Napi::Value unlockStore(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    handleArgument<StoreLock>(info[0]).reset();
    return info.Env().Undefined();
  });
}

Napi::Value openStoreView(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const std::string store = stringArgument(info[0], "store"), mount = stringArgument(info[1], "readOnlyMount");
    using Result = std::shared_ptr<StoreView>;
    return PromiseWork<Result>::start(
        info.Env(), [=] { return std::make_shared<StoreView>(store, mount); }, [](Napi::Env env, Result& view) { return makeHandle(env, view); });
  });
}

Napi::Value storeViewLevel(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    switch (openHandle<StoreView>(info[0])->level()) {
      case StoreView::Level::kReadOnlyMount: return Napi::String::New(info.Env(), "read-only mount");
      case StoreView::Level::kDetachedMount: return Napi::String::New(info.Env(), "detached read-only mount");
      case StoreView::Level::kPlain: break;
    }
    return Napi::String::New(info.Env(), "plain");
  });
}

Napi::Value closeStoreView(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    handleArgument<StoreView>(info[0]).reset();
    return info.Env().Undefined();
  });
}

Napi::Object toPeer(Napi::Env env, PeerProcess peer) {
  auto object = Napi::Object::New(env);
  object.Set("pid", peer.process->pid);
  object.Set("uid", peer.uid);
  object.Set("gid", peer.gid);
  object.Set("cgroup", peer.cgroup);
  object.Set("source", peer.fromSocket ? "SO_PEERPIDFD" : "pidfd_open");
  object.Set("process", makeHandle(env, std::move(peer.process)));
  return object;
}

Napi::Value peerProcess(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value { return toPeer(info.Env(), peerOf(static_cast<int>(uint32Argument(info[0], "descriptor")))); });
}

Napi::Value openProcess(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value { return toPeer(info.Env(), processOf(static_cast<pid_t>(uint32Argument(info[0], "pid")))); });
}

Napi::Value processAlive(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value { return Napi::Boolean::New(info.Env(), openHandle<Process>(info[0])->alive()); });
}

Napi::Value watchProcess(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const auto process = openHandle<Process>(info[0]);
    if (!info[1].IsFunction()) throw Fault(Code::kInvalidArgument, "onEnd must be a function").field("onEnd");
    Watches& watches = watchesOf(info.Env());
    stopWatching(info.Env(), *process);
    auto source = std::make_shared<EventSource<int>>(info.Env(), info[1].As<Napi::Function>(), "process end", [](Napi::Env env, int&) { return env.Undefined(); });
    watches.sources[process.get()] = source;
    process->watch = watches.watcher->add(process->pidfd.get(), [source] { source->post(std::make_unique<int>(0)); });
    return info.Env().Undefined();
  });
}

Napi::Value closeProcess(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    auto& process = handleArgument<Process>(info[0]);
    if (process) stopWatching(info.Env(), *process);
    process.reset();
    return info.Env().Undefined();
  });
}

// The server, its events, and what stops both when the environment ends.
struct DescriptorServerHandle {
  static constexpr const char* kName = DescriptorServer::kName;
  static constexpr napi_type_tag kTag = DescriptorServer::kTag;
  std::shared_ptr<EventSource<DescriptorEvent>> events;
  std::unique_ptr<DescriptorServer> server;
  std::unique_ptr<CleanupHook> hook;

  void stop() {
    server.reset();
    events->close();
  }
  ~DescriptorServerHandle() {
    hook.reset();
    stop();
  }
};

Napi::Value toEvent(Napi::Env env, DescriptorEvent& event) {
  auto object = Napi::Object::New(env);
  object.Set("kind", event.sent ? "sent" : "refused");
  object.Set("pid", event.pid);
  object.Set("descriptors", event.descriptors);
  object.Set("reason", event.reason);
  return object;
}

Napi::Value createDescriptorServer(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const std::string path = stringArgument(info[0], "path");
    const auto view = openHandle<StoreView>(info[1]);
    if (!info[2].IsFunction()) throw Fault(Code::kInvalidArgument, "onEvent must be a function").field("onEvent");
    auto handle = std::make_shared<DescriptorServerHandle>();
    handle->events = std::make_shared<EventSource<DescriptorEvent>>(info.Env(), info[2].As<Napi::Function>(), "descriptor events", toEvent);
    handle->server = std::make_unique<DescriptorServer>(path, view, [events = handle->events](const DescriptorEvent& event) { events->post(std::make_unique<DescriptorEvent>(event)); });
    handle->hook = std::make_unique<CleanupHook>(info.Env(), [raw = handle.get()] { raw->stop(); });
    return makeHandle(info.Env(), handle);
  });
}

template <size_t N>
void copyExactly(std::array<uint8_t, N>& into, const std::vector<uint8_t>& from, const char* name) {
  if (from.size() != N) throw Fault(Code::kInvalidArgument, std::string(name) + " has " + std::to_string(from.size()) + " bytes, not " + std::to_string(N)).field(name);
  std::copy(from.begin(), from.end(), into.begin());
}

DescriptorServer& serverOf(const Napi::Value& value) {
  const auto handle = openHandle<DescriptorServerHandle>(value);
  if (!handle->server) throw Fault(Code::kClosed, "this descriptor server is closed");
  return *handle->server;
}

Napi::Value grantDescriptors(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    DescriptorServer& server = serverOf(info[0]);
    const auto object = info[1].As<Napi::Object>();
    DescriptorGrant grant;
    copyExactly(grant.ticketId, bytesArgument(field(object, "ticketId"), "ticketId"), "ticketId");
    copyExactly(grant.secret, bytesArgument(field(object, "secret"), "secret"), "secret");
    grant.pid = static_cast<pid_t>(uint32Argument(field(object, "pid"), "pid"));
    grant.expires = std::chrono::steady_clock::now() + std::chrono::milliseconds(uint32Argument(field(object, "ttlMs"), "ttlMs"));
    grant.holdingId = stringArgument(field(object, "holdingId"), "holdingId");
    const auto paths = field(object, "paths").As<Napi::Array>();
    for (uint32_t i = 0; i < paths.Length(); i++) grant.paths.push_back(stringArgument(paths.Get(i), "paths"));
    if (grant.paths.empty()) throw Fault(Code::kInvalidArgument, "a grant needs at least one path").field("paths");
    server.grant(std::move(grant));
    return info.Env().Undefined();
  });
}

Napi::Value revokeDescriptors(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    serverOf(info[0]).revoke(stringArgument(info[1], "holdingId"));
    return info.Env().Undefined();
  });
}

Napi::Value closeDescriptorServer(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    handleArgument<DescriptorServerHandle>(info[0]).reset();
    return info.Env().Undefined();
  });
}

Napi::Value dieWithParentCall(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    dieWithParent(static_cast<pid_t>(uint32Argument(info[0], "parentPid")));
    return info.Env().Undefined();
  });
}

}  // namespace

void registerAgent(Napi::Env env, Napi::Object exports) {
  env.SetInstanceData(new Watches());
  exports.Set("lockStore", Napi::Function::New(env, lockStoreCall));
  exports.Set("storeLockDescriptor", Napi::Function::New(env, storeLockDescriptor));
  exports.Set("unlockStore", Napi::Function::New(env, unlockStore));
  exports.Set("openStoreView", Napi::Function::New(env, openStoreView));
  exports.Set("storeViewLevel", Napi::Function::New(env, storeViewLevel));
  exports.Set("closeStoreView", Napi::Function::New(env, closeStoreView));
  exports.Set("peerProcess", Napi::Function::New(env, peerProcess));
  exports.Set("openProcess", Napi::Function::New(env, openProcess));
  exports.Set("processAlive", Napi::Function::New(env, processAlive));
  exports.Set("watchProcess", Napi::Function::New(env, watchProcess));
  exports.Set("closeProcess", Napi::Function::New(env, closeProcess));
  exports.Set("createDescriptorServer", Napi::Function::New(env, createDescriptorServer));
  exports.Set("grantDescriptors", Napi::Function::New(env, grantDescriptors));
  exports.Set("revokeDescriptors", Napi::Function::New(env, revokeDescriptors));
  exports.Set("closeDescriptorServer", Napi::Function::New(env, closeDescriptorServer));
  exports.Set("dieWithParent", Napi::Function::New(env, dieWithParentCall));
}

}  // namespace weightline::binding
