#include "agent/parent_death.h"

#include <sys/prctl.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>

#include "base/fault.h"

namespace weightline {

void dieWithParent(pid_t parent) {
  if (::prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) throw systemFault(errno, "asking for the parent's death signal");
  // The parent may have ended before the call: then nothing would ever come.
  if (::getppid() != parent) ::_exit(1);
}

}  // namespace weightline
