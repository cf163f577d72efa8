// model.safetensors.index.json: which shard has which tensor.
#pragma once

#include <map>
#include <set>
#include <string>
#include <unordered_map>

#include "model/model_folder.h"

namespace weightline {

struct WeightIndex {
  std::string path;                                         // of the index, relative
  std::unordered_map<std::string, std::string> shardOf;     // tensor -> shard
  std::set<std::string> shards;
};

// The index among the folder's files: model.safetensors.index.json, or the only *.safetensors.index.json. Empty path: none.
std::string findIndex(const std::map<std::string, FolderEntry>& files);

// Reads it, and checks that every shard is among the files. Throws Refused listing all that are missing.
WeightIndex readIndex(const std::string& path, const std::map<std::string, FolderEntry>& files);

}  // namespace weightline
