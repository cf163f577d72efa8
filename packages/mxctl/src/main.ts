#!/usr/bin/env node
import { runMxctl } from "./program.ts";

// A reader that left, as `| head` does, is no failure.
process.stdout.on("error", (error: NodeJS.ErrnoException) => process.exit(error.code === "EPIPE" ? 0 : 1));
process.on("SIGINT", () => process.exit(130));

process.exitCode = await runMxctl(process.argv.slice(2), process.env);
process.exit();
