// A native thread's events as calls of a JavaScript function, by the teardown order of native.md, rule 3: the function is
// made, then a cleanup hook is added that stops the threads before Node takes the function away.
#pragma once

#include <napi.h>

#include <functional>
#include <memory>
#include <mutex>

namespace weightline::binding {

// Sends events of type `Event` to JavaScript. post() may be called from any thread, never blocks, and does nothing after
// close(). `unref` lets the process end although the source is open.
template <typename Event>
class EventSource : public std::enable_shared_from_this<EventSource<Event>> {
 public:
  using Convert = std::function<Napi::Value(Napi::Env, Event&)>;

  EventSource(Napi::Env env, Napi::Function callback, const char* name, Convert convert)
      : convert_(std::move(convert)), function_(Napi::ThreadSafeFunction::New(env, callback, name, 0, 1)) {
    function_.Unref(env);
  }

  void post(std::unique_ptr<Event> event) {
    std::lock_guard lock(mutex_);
    if (closed_) return;
    Event* raw = event.release();
    auto self = this->shared_from_this();
    const napi_status status = function_.NonBlockingCall(raw, [self](Napi::Env env, Napi::Function callback, Event* data) {
      const std::unique_ptr<Event> owned(data);
      if (env == nullptr || callback == nullptr) return;
      Napi::HandleScope scope(env);
      callback.Call({self->convert_(env, *owned)});
    });
    if (status != napi_ok) delete raw;
  }

  // On the JavaScript thread, after the threads that post have been joined. Idempotent.
  void close() {
    std::lock_guard lock(mutex_);
    if (closed_) return;
    closed_ = true;
    function_.Abort();
  }

 private:
  const Convert convert_;
  Napi::ThreadSafeFunction function_;
  std::mutex mutex_;
  bool closed_ = false;
};

// Runs `stop` when the environment ends, unless it was released before.
class CleanupHook {
 public:
  CleanupHook(napi_env env, std::function<void()> stop) : env_(env), stop_(std::move(stop)) { napi_add_env_cleanup_hook(env_, run, this); }
  ~CleanupHook() {
    if (armed_) napi_remove_env_cleanup_hook(env_, run, this);
  }
  CleanupHook(const CleanupHook&) = delete;
  CleanupHook& operator=(const CleanupHook&) = delete;

 private:
  static void run(void* data) {
    auto* self = static_cast<CleanupHook*>(data);
    self->armed_ = false;
    self->stop_();
  }
  napi_env env_;
  std::function<void()> stop_;
  bool armed_ = true;
};

}  // namespace weightline::binding
