// Wrong programs for the emulated Hopper, which ends each with a sentence.
#pragma once

#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "check.h"
#include "hopper/instructions.h"

struct Misuse {
  const char *name, *sentence;
  clustermim::hopper::emulated::Shape shape;
  std::function<void(clustermim::hopper::Address)> body;
  bool hangs = false;  // until its deadline
};

// A thread alone.
inline std::function<void(clustermim::hopper::Address)> one(
    const std::function<void(clustermim::hopper::Address)>& body) {
  return [body](clustermim::hopper::Address memory) {
    if (clustermim::hopper::thread_index() == 0) body(memory);
  };
}

// Whether the program's argument names one of them, which then ran.
inline bool misused(const std::vector<Misuse>& all, int count, char** arguments) {
  for (const Misuse& misuse : all) {
    if (count < 2 || misuse.name != std::string(arguments[1])) continue;
    clustermim::hopper::emulated::launch(misuse.shape, misuse.body);
    return true;
  }
  return false;
}

// Each in a process of its own, which it ends.
inline void misuses_are_named(const std::vector<Misuse>& all) {
  for (const Misuse& misuse : all) {
    const std::string seconds = misuse.hangs ? "CLUSTERMIM_EMULATED_SECONDS=4 " : "";
    const std::string program = "/proc/" + std::to_string(getpid()) + "/exe ";
    FILE* child = popen((seconds + program + misuse.name + " 2>&1").c_str(), "r");
    CHECK(child);
    std::string said;
    char line[400];
    while (std::fgets(line, sizeof line, child)) said += line;
    const bool failed = pclose(child) != 0;
    if (!failed || said.find(misuse.sentence) == std::string::npos)
      std::fprintf(stderr, "%s: expected \"%s\", got: %s\n", misuse.name, misuse.sentence,
                   said.c_str());
    CHECK(failed && said.find(misuse.sentence) != std::string::npos);
  }
}
