#include "agent/closer.h"

#include <thread>

namespace weightline {

Closer::Closer() : state_(std::make_shared<State>()) {
  std::thread([state = state_] { run(state); }).detach();
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
    lock.unlock();
    next.reset();
    lock.lock();
    // Counts until it is closed.
    state->waiting.pop_front();
  }
}

}  // namespace weightline
