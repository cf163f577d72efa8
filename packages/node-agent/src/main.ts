#!/usr/bin/env node
import { configureProgram, createLogger, runProgram } from "@weightline/runtime";
import { AGENT_OPTIONS } from "./configuration.ts";
import { createNodeAgent } from "./node-agent.ts";
import { checkAgentSecurity } from "./peers/peer-security.ts";

const PROGRAM = "weightline-node-agent";

await runProgram(PROGRAM, async () => {
  const configuration = configureProgram({
    program: PROGRAM,
    summary: "holds a node's weights in memory and moves them to and from other nodes",
    table: AGENT_OPTIONS,
    check: checkAgentSecurity,
    examples: [
      `${PROGRAM} --control-plane control-plane:8001`,
      `${PROGRAM} --store /dev/shm/weightline --memory-limit 64GiB`,
      `${PROGRAM} --generate-config >agent.yaml`,
    ],
  });
  if (configuration === undefined) {
    process.exit(0);
  }
  const { values } = configuration;
  const log = createLogger({
    program: "node-agent",
    level: values.logLevel,
    format: values.logFormat,
    file: values.logFile,
    reopenOn: "SIGHUP",
  });
  for (const notice of configuration.notices) {
    log.warn(notice);
  }
  return createNodeAgent(values, log);
});
