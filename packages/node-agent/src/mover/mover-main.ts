// The mover process: the only one that opens holdings for writing and moves bytes. It imports the addon alone.
import { type MoverHandle, type MoverOptions, NativeError, native } from "@weightline/rdma-native";
import { CHANNEL_VERSION, type FromMover, type ToMover } from "./channel.ts";

function send(message: FromMover): void {
  process.send?.(message);
}

function start(options: MoverOptions): MoverHandle | undefined {
  try {
    const mover = native.createMover(options, (report) => send({ report }));
    send({ address: native.moverAddress(mover) });
    return mover;
  } catch (error) {
    const { code, message, field, value, wayOut } = error as NativeError;
    send({ failed: { code: error instanceof NativeError ? code : "Internal", message, field, value, wayOut } });
    return undefined;
  }
}

native.dieWithParent(process.ppid);
let mover: MoverHandle | undefined;
process.on("message", (message: ToMover) => {
  if (message.version !== CHANNEL_VERSION) {
    // The files under a running agent were replaced by another version's.
    send({
      failed: {
        code: "Refused",
        message: `the agent speaks version ${message.version} of the mover's channel, this mover ${CHANNEL_VERSION}`,
        field: "version",
        value: String(message.version),
        wayOut: "restart the agent",
      },
    });
  } else if ("start" in message) {
    mover = start(message.start);
  } else if (mover !== undefined) {
    native.moverOrder(mover, message.order);
  }
});
process.on("disconnect", () => {
  if (mover !== undefined) {
    native.closeMover(mover);
  }
  process.exit(0);
});
// The agent decides when the mover ends; a terminal's Ctrl-C reaches the whole process group.
process.on("SIGINT", () => undefined);
process.on("SIGTERM", () => undefined);
