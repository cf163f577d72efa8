#include "agent/closer.h"

#include <thread>

#include "agent/fuse_connection.h"

namespace weightline {

Closer::Closer() : state_(std::make_shared<State>()) {
  std::thread([state = state_] { run(state); }).detach();
  std::thread([state = state_] { watch(state); }).detach();
}

Closer::~Closer() {
  std::lock_guard lock(state_->mutex);
  state_->stop = true;
  state_->changed.notify_all();
}

void Closer::close(Descriptor descriptor) {
  std::lock_guard lock(state_->mutex);
  state_->waiting.push_back(std::move(descriptor));
  state_->changed.notify_all();
}

bool Closer::full() const {
  std::lock_guard lock(state_->mutex);
  return state_->waiting.size() >= kMaxWaiting;
}

void Closer::run(const std::shared_ptr<State>& state) {
  std::unique_lock lock(state->mutex);
  while (true) {
    state->changed.wait(lock, [&] { return state->stop || !state->waiting.empty(); });
    if (state->waiting.empty()) return;
    Descriptor next = std::move(state->waiting.front());
    state->minor = deviceMinorOf(next.get());
    state->closing = true;
    state->changed.notify_all();
    lock.unlock();
    next.reset();
    lock.lock();
    // Counts as waiting until it is closed.
    state->waiting.pop_front();
    state->closing = false;
    state->closed++;
    state->changed.notify_all();
  }
}

void Closer::watch(const std::shared_ptr<State>& state) {
  std::unique_lock lock(state->mutex);
  while (true) {
    state->changed.wait(lock, [&] { return state->closing || (state->stop && state->waiting.empty()); });
    if (!state->closing) return;
    const uint64_t before = state->closed;
    if (state->changed.wait_for(lock, kCloseTime, [&] { return state->closed != before; })) continue;
    const uint32_t minor = state->minor;
    lock.unlock();
    if (minor != 0) abortFuseConnection(minor);
    lock.lock();
    state->changed.wait_for(lock, kCloseTime, [&] { return state->closed != before; });
  }
}

}  // namespace weightline
