// The holdings that the mover has open, so that a fill and the streams that relay it share one.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "store/holding.h"

namespace weightline {

class HoldingTable {
 public:
  explicit HoldingTable(std::string store) : store_(std::move(store)) {}

  const std::string& store() const { return store_; }
  // The open one, or opens it. A whole holding is given as complete. Throws Unavailable while it is being taken away.
  std::shared_ptr<Holding> open(const std::string& id);
  // Opens it if its folder has a layout, else makes it with what `layout` gives.
  std::shared_ptr<Holding> openOrCreate(const std::string& id, const std::function<std::vector<uint8_t>()>& layout);
  // Refuses open() and wakes all who wait on it, until unretire.
  void retire(const std::string& id, const std::string& why);
  void unretire(const std::string& id);
  // True while somebody has it open.
  bool inUse(const std::string& id);

 private:
  std::shared_ptr<Holding> find(const std::string& id);
  const std::string store_;
  std::mutex mutex_;
  std::map<std::string, std::weak_ptr<Holding>> open_;
  std::map<std::string, std::string> retired_;
};

}  // namespace weightline
