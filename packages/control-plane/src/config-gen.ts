#!/usr/bin/env node
import { runConfigGenerator } from "@weightline/runtime";
import { CONTROL_PLANE_OPTIONS } from "./configuration.ts";

process.exitCode = runConfigGenerator(
  {
    program: "config_gen",
    subject: "weightline-control-plane",
    table: CONTROL_PLANE_OPTIONS,
    defaultFile: "model-express.yaml",
  },
  process.argv.slice(2),
);
