// A native thread's events as calls of a JavaScript function, by the teardown order of native.md, rule 3: the function is
// made, then a cleanup hook is added that stops the threads before Node takes the function away.
#pragma once

#include <napi.h>

#include <deque>
#include <functional>
#include <memory>
#include <mutex>

namespace weightline::binding {

// Sends events of type `Event` to JavaScript, as `convert` gives them; one of which it gives nothing is dropped. post() may
// be called from any thread, never blocks, and does nothing after close(). The process may end although the source is open,
// unless `keepsAlive`.
//
// The events wait in a queue of ours, and each call of the thread-safe function takes one: what Node drops when it ends is
// then freed with the queue.
template <typename Event>
class EventSource {
 public:
  using Convert = std::function<Napi::Value(Napi::Env, Event&)>;

  EventSource(Napi::Env env, Napi::Function callback, const char* name, Convert convert, bool keepsAlive = false)
      : state_(std::make_shared<State>()) {
    state_->convert = std::move(convert);
    auto context = std::make_unique<std::shared_ptr<State>>(state_);
    const napi_status status = napi_create_threadsafe_function(
        env, callback, nullptr, Napi::String::New(env, name), 0, 1, nullptr, release, context.get(), deliver, &function_);
    if (status != napi_ok) throw Napi::Error::New(env);
    context.release();  // release() frees it
    if (!keepsAlive) napi_unref_threadsafe_function(env, function_);
  }
  ~EventSource() { close(); }
  EventSource(const EventSource&) = delete;
  EventSource& operator=(const EventSource&) = delete;

  void post(std::unique_ptr<Event> event) {
    std::lock_guard lock(state_->mutex);
    if (state_->closed) return;
    state_->events.push_back(std::move(event));
    if (napi_call_threadsafe_function(function_, nullptr, napi_tsfn_nonblocking) != napi_ok) state_->events.pop_back();
  }

  // Events that JavaScript has not taken yet.
  size_t waiting() const {
    std::lock_guard lock(state_->mutex);
    return state_->events.size();
  }

  // After the threads that post have been joined. Idempotent.
  void close() {
    std::lock_guard lock(state_->mutex);
    if (state_->closed) return;
    state_->closed = true;
    napi_release_threadsafe_function(function_, napi_tsfn_abort);
  }

 private:
  struct State {
    Convert convert;
    std::mutex mutex;
    std::deque<std::unique_ptr<Event>> events;
    bool closed = false;
  };

  static void deliver(napi_env env, napi_value callback, void* context, void*) {
    if (env == nullptr || callback == nullptr) return;
    const auto state = *static_cast<std::shared_ptr<State>*>(context);
    std::unique_ptr<Event> event;
    {
      std::lock_guard lock(state->mutex);
      if (state->closed || state->events.empty()) return;
      event = std::move(state->events.front());
      state->events.pop_front();
    }
    Napi::HandleScope scope(env);
    try {
      const Napi::Value value = state->convert(env, *event);
      if (!value.IsEmpty()) Napi::Function(env, callback).Call({value});
    } catch (const Napi::Error& error) {
      // Thrown on, it would be a mere warning of Node's; so it is the program's uncaught exception. Where the environment
      // is being ended there is nobody to tell.
      try {
        napi_fatal_exception(env, error.Value());
      } catch (const Napi::Error&) {
      }
    }
  }

  static void release(napi_env, void*, void* context) { delete static_cast<std::shared_ptr<State>*>(context); }

  const std::shared_ptr<State> state_;
  napi_threadsafe_function function_ = nullptr;
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
