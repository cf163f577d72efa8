// The local API's socket.
#include "agent/local_listener.h"
#include "binding/event_source.h"
#include "binding/support.h"

namespace weightline::binding {

namespace {

// The listener, the connections on their way to JavaScript, and what stops both when the environment ends.
struct LocalListenerHandle {
  static constexpr const char* kName = LocalListener::kName;
  static constexpr napi_type_tag kTag = LocalListener::kTag;
  std::shared_ptr<EventSource<Descriptor>> connections;
  std::unique_ptr<LocalListener> listener;
  std::unique_ptr<CleanupHook> hook;
  Napi::FunctionReference onTurnEnd;
  bool turnEnds = false;  // onTurnEnd will be called

  void stop() {
    listener.reset();
    connections->close();
    onTurnEnd.Reset();
  }
  // Node goes on with what a thread posts for as long as there is more, up to a thousand: connections that made room for the
  // next at once would keep everything else waiting.
  void taken(Napi::Env env, int socket) {
    if (!listener) return;
    listener->taken(socket);
    if (turnEnds) return;
    turnEnds = true;
    env.Global().Get("setImmediate").As<Napi::Function>().Call({onTurnEnd.Value()});
  }
  ~LocalListenerHandle() {
    hook.reset();
    stop();
  }
};

Napi::Value createLocalListener(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const std::string path = stringArgument(info[0], "path");
    if (!info[1].IsFunction()) throw Fault(Code::kInvalidArgument, "onConnection must be a function").field("onConnection");
    auto handle = std::make_shared<LocalListenerHandle>();
    const auto turnEnd = [weak = std::weak_ptr(handle)](const Napi::CallbackInfo&) {
      const auto handle = weak.lock();
      if (!handle) return;
      handle->turnEnds = false;
      if (handle->listener) handle->listener->turnEnded();
    };
    handle->onTurnEnd = Napi::Persistent(Napi::Function::New(info.Env(), turnEnd));
    const auto toNumber = [raw = handle.get()](Napi::Env env, Descriptor& socket) -> Napi::Value {
      raw->taken(env, socket.get());
      return hungUp(socket.get()) ? Napi::Value() : Napi::Number::New(env, socket.release());
    };
    handle->connections = std::make_shared<EventSource<Descriptor>>(info.Env(), info[1].As<Napi::Function>(), "local connections", toNumber);
    handle->listener = std::make_unique<LocalListener>(
        path, [connections = handle->connections](Descriptor socket) { connections->post(std::make_unique<Descriptor>(std::move(socket))); });
    handle->hook = std::make_unique<CleanupHook>(info.Env(), [raw = handle.get()] { raw->stop(); });
    return makeHandle(info.Env(), handle);
  });
}

Napi::Value holdLocalCaller(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const auto handle = openHandle<LocalListenerHandle>(info[0]);
    const uint32_t pid = uint32Argument(info[1], "pid"), holdMs = uint32Argument(info[2], "holdMs");
    if (handle->listener) handle->listener->hold(static_cast<pid_t>(pid), std::chrono::milliseconds(holdMs));
    return info.Env().Undefined();
  });
}

Napi::Value closeLocalListener(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    handleArgument<LocalListenerHandle>(info[0]).reset();
    return info.Env().Undefined();
  });
}

}  // namespace

void registerListener(Napi::Env env, Napi::Object exports) {
  exports.Set("createLocalListener", Napi::Function::New(env, createLocalListener));
  exports.Set("holdLocalCaller", Napi::Function::New(env, holdLocalCaller));
  exports.Set("closeLocalListener", Napi::Function::New(env, closeLocalListener));
}

}  // namespace weightline::binding
