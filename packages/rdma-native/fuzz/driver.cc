// Drives a fuzz target where there is no libFuzzer: seeds, then mutations of what reached new code, each with a time limit, in a
// process of its own. What fails is shortened, kept in a file, and told.
//
// usage: fuzz_TARGET [--inputs N] [--seed S] [--corpus FOLDER] [--failures FOLDER] [--limit-ms N] [FILE...]
// With files: runs these and no others. The last line of the output is a JSON object; exit 1 after a failure, 2 for a wrong call.
#include <sanitizer/lsan_interface.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <new>
#include <thread>

#include "coverage.h"
#include "digest/digest.h"
#include "fuzz.h"
#include "mutator.h"

// What every run has, whatever the environment says besides: the stack of a hang, an end for an input that takes much memory.
extern "C" const char* __asan_default_options() { return "handle_abort=1:max_allocation_size_mb=512:detect_leaks=1:exitcode=99:detect_stack_use_after_return=0"; }
extern "C" const char* __ubsan_default_options() { return "print_stacktrace=1"; }

namespace weightline::fuzz {

namespace {

using Clock = std::chrono::steady_clock;

// Leaks are looked for after so many inputs.
constexpr size_t kLeakCheckInputs = 2000;
constexpr size_t kMaxInputBytes = 1 << 20;
constexpr size_t kMaxPool = 4096;
constexpr int kShorteningTries = 400;
constexpr std::chrono::milliseconds kWatchPeriod{20};
constexpr int kLeakExit = 98;

struct Options {
  uint64_t seed = 1;
  size_t inputs = 100'000;
  int limitMs = 10'000;
  std::string corpus, failures;
  std::vector<std::string> files;
};

// What the process that runs the inputs shares with the one that watches it.
struct Shared {
  std::atomic<uint64_t> begun{0};  // inputs
  std::atomic<bool> running{false};
  uint64_t inputBytes = 0;
  uint64_t inputs = 0, pool = 0, edges = 0, slowestUs = 0, leakChecks = 0;
  bool leaks = false;
  int batch = -1;
  uint8_t input[kMaxInputBytes];
};

struct Outcome {
  bool failed = false;
  std::string what;
  bool hung = false, leak = false;
};

Shared* shared = nullptr;

void runOne(const Bytes& input) {
  shared->inputBytes = std::min(input.size(), kMaxInputBytes);
  std::copy_n(input.begin(), shared->inputBytes, shared->input);
  shared->running = true;
  shared->begun++;
  const auto start = Clock::now();
  // A copy of its exact size, so that a read beyond it is seen.
  const Bytes exact(input.begin(), input.end());
  LLVMFuzzerTestOneInput(exact.data(), exact.size());
  shared->slowestUs = std::max(shared->slowestUs, static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - start).count()));
  shared->running = false;
  shared->inputs++;
}

// A pointer that an ended function left on the stack would hide its leak.
__attribute__((noinline)) void clearStack() {
  volatile uint8_t below[1 << 16];
  for (volatile uint8_t& byte : below) byte = 0;
}

// A register or an old place on the stack may still hold what one run lost: not what many runs lost.
constexpr int kLeakRuns = 20;

bool leaked() {
  if (!shared->leaks) return false;
  clearStack();
  shared->leakChecks++;
  return __lsan_do_recoverable_leak_check() != 0;
}

// Inputs that the running process hands to the watching one, through a file that both have.
void writeBatch(const std::vector<Bytes>& inputs) {
  std::ofstream file("/proc/self/fd/" + std::to_string(shared->batch), std::ios::binary | std::ios::trunc);
  for (const Bytes& input : inputs) {
    const uint64_t bytes = input.size();
    file.write(reinterpret_cast<const char*>(&bytes), sizeof(bytes));
    file.write(reinterpret_cast<const char*>(input.data()), static_cast<std::streamsize>(bytes));
  }
}

std::vector<Bytes> readBatch() {
  std::ifstream file("/proc/self/fd/" + std::to_string(shared->batch), std::ios::binary);
  std::vector<Bytes> inputs;
  for (uint64_t bytes = 0; file.read(reinterpret_cast<char*>(&bytes), sizeof(bytes));) {
    inputs.emplace_back(bytes);
    file.read(reinterpret_cast<char*>(inputs.back().data()), static_cast<std::streamsize>(bytes));
  }
  return inputs;
}

// Runs inputs and looks for leaks; a leak ends the process, and one of the batch's inputs has it.
class Runner {
 public:
  void run(const Bytes& input) {
    runOne(input);
    since_.push_back(input);
    if (since_.size() >= kLeakCheckInputs) checkLeaks();
  }
  void checkLeaks() {
    if (leaked()) {
      writeBatch(since_);
      std::_Exit(kLeakExit);
    }
    since_.clear();
  }

 private:
  std::vector<Bytes> since_;
};

Bytes readFile(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::vector<Bytes> readCorpus(const std::string& folder) {
  std::vector<std::filesystem::path> paths;
  if (!folder.empty() && std::filesystem::is_directory(folder)) {
    for (const auto& entry : std::filesystem::directory_iterator(folder)) paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  std::vector<Bytes> inputs;
  for (const auto& path : paths) inputs.push_back(readFile(path));
  return inputs;
}

void fuzz(const Target& target, const Options& options) {
  Random random(options.seed);
  Runner runner;
  std::vector<Bytes> pool = target.seeds;
  const std::vector<Bytes> failedOnce = readCorpus(options.corpus);
  pool.insert(pool.end(), failedOnce.begin(), failedOnce.end());
  if (pool.empty()) pool.emplace_back();
  for (const Bytes& input : pool) {
    clearCoverage();
    runner.run(input);
    coveredNew();
  }
  const size_t first = pool.size();
  for (size_t i = 0; i < options.inputs; i++) {
    // The newest are the deepest.
    const size_t base = random.oneIn(3) && pool.size() > first ? pool.size() - 1 - random.below(std::min<size_t>(pool.size(), 32)) : random.below(pool.size());
    Bytes input = mutate(target, pool[base], pool[random.below(pool.size())], random);
    clearCoverage();
    runner.run(input);
    if (!target.guided) continue;
    if (!coveredNew()) continue;
    if (pool.size() < kMaxPool) pool.push_back(std::move(input));
    else pool[first + random.below(kMaxPool - first)] = std::move(input);
  }
  runner.checkLeaks();
  coveredNew();
  shared->pool = pool.size();
  shared->edges = coveredEdges();
}

// Runs `body` in a process of its own and waits for its end; kills it when one input takes longer than the limit.
template <typename Body>
Outcome watch(const Options& options, bool quiet, const Body& body) {
  shared->running = false;
  std::fflush(nullptr);
  const pid_t child = ::fork();
  if (child == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (quiet && std::freopen("/dev/null", "w", stderr) == nullptr) std::_Exit(1);
    body();
    // Not by return: what lives until the end of the process is no leak.
    std::_Exit(0);
  }
  uint64_t seen = 0;
  auto since = Clock::now();
  bool hung = false;
  while (true) {
    int status = 0;
    if (::waitpid(child, &status, WNOHANG) == child) {
      if (status == 0) return {};
      if (hung) return {true, "it did not end within " + std::to_string(options.limitMs) + " ms", true, false};
      if (WIFEXITED(status) && WEXITSTATUS(status) == kLeakExit) return {true, "memory leaked", false, true};
      return {true, WIFEXITED(status) ? "a sanitizer or a check ended it" : "signal " + std::to_string(WTERMSIG(status)) + " ended it", false, false};
    }
    const uint64_t begun = shared->begun;
    if (begun != seen || !shared->running) {
      seen = begun;
      since = Clock::now();
    } else if (!hung && Clock::now() - since > std::chrono::milliseconds(options.limitMs)) {
      hung = true;
      // The sanitizer prints where it was.
      ::kill(child, SIGABRT);
      since = Clock::now();
    } else if (hung && Clock::now() - since > std::chrono::milliseconds(options.limitMs)) {
      ::kill(child, SIGKILL);
    }
    std::this_thread::sleep_for(kWatchPeriod);
  }
}

// Cuts pieces out of a failing input as long as it fails without them.
Bytes shorten(Bytes input, const Options& options) {
  const auto fails = [&](const Bytes& candidate) {
    return watch(options, true, [&] {
             for (int i = 0; i < kLeakRuns; i++) runOne(candidate);
             if (leaked()) std::_Exit(kLeakExit);
           })
        .failed;
  };
  int tries = 0;
  for (size_t piece = std::max<size_t>(1, input.size() / 2); piece > 0; piece /= 2) {
    for (size_t at = 0; at + piece <= input.size() && tries < kShorteningTries; tries++) {
      Bytes candidate = input;
      candidate.erase(candidate.begin() + static_cast<std::ptrdiff_t>(at), candidate.begin() + static_cast<std::ptrdiff_t>(at + piece));
      if (fails(candidate)) {
        input = std::move(candidate);
      } else {
        at += piece;
      }
    }
  }
  return input;
}

// The one of a batch that leaks, by halves, each in a process of its own.
Bytes findLeak(std::vector<Bytes> batch, const Options& options) {
  while (batch.size() > 1) {
    const auto middle = batch.begin() + static_cast<std::ptrdiff_t>(batch.size() / 2);
    const std::vector<Bytes> first(batch.begin(), middle), second(middle, batch.end());
    const Outcome outcome = watch(options, true, [&] {
      for (const Bytes& input : first) {
        for (int i = 0; i < kLeakRuns; i++) runOne(input);
      }
      if (leaked()) std::_Exit(kLeakExit);
    });
    batch = outcome.failed ? first : second;
  }
  return batch.empty() ? Bytes{} : batch.front();
}

std::string keep(const Target& target, const Bytes& input, const Options& options) {
  if (options.failures.empty()) return "";
  std::filesystem::create_directories(options.failures);
  const std::string path = options.failures + "/" + target.name + "-" + toHex(digestOf(Algorithm::kXxh3, input)).substr(0, 16);
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(input.data()), static_cast<std::streamsize>(input.size()));
  return path;
}

// A process that another one traces cannot look for leaks: LeakSanitizer ends it.
bool leaksCanBeSeen(const Options& options) {
  return !watch(options, true, [] {
            for (int i = 0; i < kLeakRuns; i++) {
              auto* volatile lost = new uint8_t[64];
              static_cast<void>(lost);
              lost = nullptr;
            }
            if (__lsan_do_recoverable_leak_check() == 0) std::_Exit(1);
          }).failed;
}

bool parse(int count, char** words, Options& options) {
  for (int i = 1; i < count; i++) {
    const std::string word = words[i];
    if (!word.starts_with("--")) {
      options.files.push_back(word);
      continue;
    }
    if (i + 1 >= count) return false;
    const std::string value = words[++i];
    if (word == "--inputs") options.inputs = std::strtoull(value.c_str(), nullptr, 10);
    else if (word == "--seed") options.seed = std::strtoull(value.c_str(), nullptr, 10);
    else if (word == "--limit-ms") options.limitMs = std::atoi(value.c_str());
    else if (word == "--corpus") options.corpus = value;
    else if (word == "--failures") options.failures = value;
    else return false;
  }
  return true;
}

int drive(int count, char** words) {
  Options options;
  if (!parse(count, words, options)) {
    std::fprintf(stderr, "usage: %s [--inputs N] [--seed S] [--corpus FOLDER] [--failures FOLDER] [--limit-ms N] [FILE...]\n", words[0]);
    return 2;
  }
  void* memory = ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return 2;
  shared = new (memory) Shared;
  shared->batch = ::memfd_create("batch", MFD_CLOEXEC);
  const Target target = describe();
  shared->leaks = leaksCanBeSeen(options);
  const auto start = Clock::now();
  const Outcome outcome = watch(options, false, [&] {
    if (options.files.empty()) {
      fuzz(target, options);
      return;
    }
    Runner runner;
    for (const std::string& path : options.files) {
      for (int i = 0; i < kLeakRuns; i++) runner.run(readFile(path));
      runner.checkLeaks();
    }
  });
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  std::string kept;
  size_t bytes = 0;
  const uint64_t inputs = shared->inputs;
  if (outcome.failed) {
    Bytes input(shared->input, shared->input + shared->inputBytes);
    if (outcome.leak && options.files.empty()) input = findLeak(readBatch(), options);
    // A hang would take the limit for each try.
    if (options.files.empty() && !outcome.hung) input = shorten(input, options);
    bytes = input.size();
    kept = keep(target, input, options);
    std::fprintf(stderr, "fuzz: %s: %s; the input has %zu bytes: %s\n", target.name.c_str(), outcome.what.c_str(), bytes, kept.empty() ? "not kept (no --failures)" : kept.c_str());
  }
  std::printf("{\"target\":\"%s\",\"seed\":%llu,\"inputs\":%llu,\"pool\":%llu,\"edges\":%llu,\"seconds\":%.1f,\"slowest_ms\":%.1f,\"leak_checks\":%llu,\"failed\":%s,\"reason\":\"%s\",\"kept\":\"%s\"}\n",
              target.name.c_str(), static_cast<unsigned long long>(options.seed), static_cast<unsigned long long>(inputs), static_cast<unsigned long long>(shared->pool),
              static_cast<unsigned long long>(shared->edges), seconds, static_cast<double>(shared->slowestUs) / 1000, static_cast<unsigned long long>(shared->leakChecks),
              outcome.failed ? "true" : "false", outcome.what.c_str(), kept.c_str());
  return outcome.failed ? 1 : 0;
}

}  // namespace

}  // namespace weightline::fuzz

int main(int count, char** words) { return weightline::fuzz::drive(count, words); }
