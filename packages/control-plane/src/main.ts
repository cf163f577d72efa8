#!/usr/bin/env node
import { configureProgram, createLogger, runProgram } from "@weightline/runtime";
import { CONTROL_PLANE_OPTIONS } from "./configuration.ts";
import { createControlPlane } from "./control-plane.ts";
import { checkSecurity, securityWarnings } from "./security/security-options.ts";

const PROGRAM = "weightline-control-plane";

await runProgram(PROGRAM, async () => {
  const configuration = configureProgram({
    program: PROGRAM,
    summary: "the directory of nodes, holdings and workers",
    table: CONTROL_PLANE_OPTIONS,
    check: checkSecurity,
    examples: [
      PROGRAM,
      `${PROGRAM} --port 8001 --metrics-port 9401`,
      `${PROGRAM} --generate-config >model-express.yaml`,
    ],
  });
  if (configuration === undefined) {
    process.exit(0);
  }
  const { values, origins } = configuration;
  const log = createLogger({
    program: "control-plane",
    level: values.logLevel,
    format: values.logStructured ? "json" : values.logFormat,
    file: values.logFile,
    reopenOn: "SIGHUP",
  });
  for (const notice of configuration.notices) {
    log.warn(notice);
  }
  if (origins.metadataBackend === "default") {
    log.warn(
      "MX_METADATA_BACKEND is not set: nodes and workers are kept in memory; a restart forgets them until the next announce or publish",
    );
  }
  const redisSettings = [origins.redisUrl, origins.redisHost, origins.redisPort].filter(
    (origin) => origin !== "default",
  );
  if (values.metadataBackend === "memory" && redisSettings.length > 0) {
    log.warn(`${redisSettings.join(", ")}: no effect while MX_METADATA_BACKEND is memory`);
  }
  for (const warning of securityWarnings(values)) {
    log.warn(warning);
  }
  return createControlPlane(values, log);
});
