#include "mover/holding_table.h"

#include <unistd.h>

namespace weightline {

std::shared_ptr<Holding> HoldingTable::find(const std::string& id) {
  const auto retired = retired_.find(id);
  if (retired != retired_.end()) throw Fault(Code::kUnavailable, retired->second).field("holding").value(id);
  const auto found = open_.find(id);
  return found == open_.end() ? nullptr : found->second.lock();
}

std::shared_ptr<Holding> HoldingTable::open(const std::string& id) {
  std::lock_guard lock(mutex_);
  std::shared_ptr<Holding> holding = find(id);
  if (!holding) {
    holding = Holding::open(store_, id);
    if (holding->whole()) holding->markComplete(holding->objectDigest());
    std::erase_if(open_, [](const auto& entry) { return entry.second.expired(); });
    open_[id] = holding;
  }
  return holding;
}

std::shared_ptr<Holding> HoldingTable::openOrCreate(const std::string& id, const std::function<std::vector<uint8_t>()>& layout) {
  if (::access((holdingFolder(store_, id) + "/layout").c_str(), F_OK) == 0) return open(id);
  const std::vector<uint8_t> bytes = layout();
  std::unique_lock lock(mutex_);
  // Another order may have made it meanwhile: made twice, the first one's files would be cut off under it.
  if (::access((holdingFolder(store_, id) + "/layout").c_str(), F_OK) == 0) {
    lock.unlock();
    return open(id);
  }
  std::shared_ptr<Holding> holding = Holding::create(store_, id, bytes);
  open_[id] = holding;
  return holding;
}

void HoldingTable::retire(const std::string& id, const std::string& why) {
  std::lock_guard lock(mutex_);
  retired_[id] = why;
  const auto found = open_.find(id);
  if (found == open_.end()) return;
  if (const auto holding = found->second.lock()) holding->retire(why);
}

void HoldingTable::unretire(const std::string& id) {
  std::lock_guard lock(mutex_);
  retired_.erase(id);
  const auto found = open_.find(id);
  if (found == open_.end()) return;
  if (const auto holding = found->second.lock()) holding->unretire();
}

bool HoldingTable::inUse(const std::string& id) {
  std::lock_guard lock(mutex_);
  const auto found = open_.find(id);
  return found != open_.end() && !found->second.expired();
}

}  // namespace weightline
