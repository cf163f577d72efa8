// Level, format and file are really applied; a file that is moved, refused or full ends no program.
import {
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  unlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { createLogger, LOG_FORMATS, LOG_LEVELS } from "@weightline/runtime";
import t from "tap";
import { ROOT, runCommand, startCommand } from "../../../test/support/program.ts";
import { openLogFile } from "../src/log-file.ts";

const folder = mkdtempSync(`${tmpdir()}/weightline-logging-`);
t.teardown(() => rmSync(folder, { recursive: true }));
const lines = (file: string) => readFileSync(`${folder}/${file}`, "utf8").trimEnd().split("\n");

t.test("level: what is below it is not written, in every format", async (t) => {
  for (const format of LOG_FORMATS) {
    for (const [i, level] of LOG_LEVELS.entries()) {
      const file = `${format}-${level}`;
      const log = createLogger({ program: "prog", level, format, file: `${folder}/${file}` });
      for (const each of LOG_LEVELS) {
        log[each]({ event: "e" }, `said at ${each}`);
      }
      t.same(
        lines(file).map((line) => /said at (\w+)/.exec(line)?.[1]),
        LOG_LEVELS.slice(i),
        `${format} ${level}`,
      );
    }
  }
});

t.test("format: json is one object, pretty has the date, compact the time; each record is one line", async (t) => {
  const forms = {
    json: /^\{"level":40,"time":\d{13},"program":"prog","event":"e","error":"two\\nlines","n":1,"msg":"hello"\}$/,
    pretty:
      /^\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} [+-]\d{4}\] WARN: prog: hello \{"event":"e","error":"two\\nlines","n":1\}$/,
    compact: /^\[\d\d:\d\d:\d\d\.\d{3}\] WARN: prog: hello \{"event":"e","error":"two\\nlines","n":1\}$/,
  };
  for (const format of LOG_FORMATS) {
    const log = createLogger({ program: "prog", level: "info", format, file: `${folder}/form-${format}` });
    log.warn({ event: "e", error: "two\nlines", n: 1 }, "hello");
    log.warn({ password: "hunter2", nested: { token: "hunter2", secret: "hunter2", authorization: "hunter2" } }, "x");
    const [first, second, ...rest] = lines(`form-${format}`);
    t.match(first, forms[format]);
    t.notMatch(second, "hunter2");
    t.equal(second?.split("[secret]").length, 5);
    t.same(rest, []);
  }
});

t.test("a program that ends at once has written its last line, in every format, on standard error too", async (t) => {
  for (const format of LOG_FORMATS) {
    for (const file of ["", `${folder}/last-${format}`]) {
      const done = await runCommand([
        process.execPath,
        "--input-type=module-typescript",
        "-e",
        `import { createLogger } from "${ROOT}packages/runtime/src/index.ts";
         const log = createLogger({ program: "p", level: "info", format: "${format}", file: "${file}" });
         for (let i = 0; i < 1000; i++) log.info({ i }, "line");
         log.error("the last word");
         process.exit(3);`,
      ]);
      t.equal(done.code, 3);
      const text = file === "" ? done.stderr : readFileSync(file, "utf8");
      t.equal(text.split("\n").length, 1002, `${format} ${file === "" ? "standard error" : "file"}`);
      t.match(text, /the last word"?\}?\n$/);
    }
  }
});

t.test("SIGHUP opens the file anew after it was moved; where that fails the old one goes on", async (t) => {
  const file = `${folder}/rotated/log`;
  const program = startCommand([
    process.execPath,
    "--input-type=module-typescript",
    "-e",
    `import { createLogger } from "${ROOT}packages/runtime/src/index.ts";
     const log = createLogger({ program: "p", level: "info", format: "json", file: "${file}", reopenOn: "SIGHUP" });
     let n = 0;
     process.stdin.on("data", () => { log.info({ n: ++n }, "line"); console.log("wrote " + n); });
     process.on("SIGHUP", () => console.log("hup"));
     console.log("up");`,
  ]);
  t.teardown(() => program.stop());
  await program.waitFor(/up/);
  const say = async (n: number) => {
    program.say("x");
    await program.waitFor(new RegExp(`wrote ${n}`));
  };
  await say(1);
  renameSync(file, `${file}.1`);
  await say(2);
  t.same(
    lines("rotated/log.1").map((line) => JSON.parse(line).n),
    [1, 2],
    "until it is told it writes where it did",
  );
  program.kill("SIGHUP");
  await program.waitFor(/hup/);
  await say(3);
  t.match(
    lines("rotated/log").map((line) => JSON.parse(line)),
    [{ event: "log-reopened" }, { n: 3 }],
  );
  renameSync(file, `${file}.2`);
  mkdirSync(file);
  program.kill("SIGHUP");
  await program.waitFor(/hup\n[\s\S]*hup/);
  await say(4);
  t.match(
    lines("rotated/log.2").map((line) => JSON.parse(line)),
    [{ event: "log-reopened" }, { n: 3 }, { event: "log-not-reopened", error: /it is a folder/ }, { n: 4 }],
  );
});

t.test("a full disk loses lines, not the program, and the log says how many", async (t) => {
  const full = openLogFile("/dev/full");
  full.write("one\n");
  full.write("two\n");
  t.pass("writes to a full device throw nothing");
  // The same object, whose path means a file with room when it is opened anew.
  const path = `${folder}/link`;
  writeFileSync(`${folder}/room`, "");
  symlinkSync("/dev/full", path);
  const log = openLogFile(path);
  log.write("lost\n");
  log.write("lost too\n");
  unlinkSync(path);
  symlinkSync(`${folder}/room`, path);
  t.equal(log.reopen(), undefined);
  log.write("kept\n");
  log.write("kept too\n");
  const [empty, told = "", ...rest] = lines("room");
  t.equal(empty, "", "what was torn ends here");
  t.match(JSON.parse(told), { event: "log-lines-lost", lines: 2 });
  t.same(rest, ["kept", "kept too"]);
});
