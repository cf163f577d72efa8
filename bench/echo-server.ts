// A server of gRPC that does nothing: every call gets the same reply, made before. What the load reaches against it is the load's own.
import { createServer } from "node:net";
import {
  ACK,
  END_HEADERS,
  END_STREAM,
  FRAME,
  type Frame,
  frame,
  frameReader,
  grpcMessage,
  PREFACE,
  settings,
  windowUpdate,
} from "../test/support/http2-frames.ts";

/** `:status` 200 of HPACK's static table. */
const STATUS_OK = Buffer.from([0x88]);
/** A literal of HPACK: name and value. */
const literal = (name: string, value: string) =>
  Buffer.concat([Buffer.from([0, name.length]), Buffer.from(name), Buffer.from([value.length]), Buffer.from(value)]);
const HEAD = Buffer.concat([STATUS_OK, literal("content-type", "application/grpc")]);
const TRAILERS = literal("grpc-status", "0");
/** A `true` in field 1. */
const MESSAGE = grpcMessage(Buffer.from([8, 1]));
const WINDOW_STEP_BYTES = 16_384;

function replyOn(stream: number): Buffer {
  return Buffer.concat([
    frame(FRAME.headers, END_HEADERS, stream, HEAD),
    frame(FRAME.data, 0, stream, MESSAGE),
    frame(FRAME.headers, END_HEADERS | END_STREAM, stream, TRAILERS),
  ]);
}

const server = createServer({ noDelay: true }, (socket) => {
  let prefaceBytes = PREFACE.length;
  let takenBytes = 0;
  let answers: Buffer[] = [];
  const take = ({ type, flags, stream, payload }: Frame) => {
    if (type === FRAME.settings && (flags & ACK) === 0) {
      answers.push(frame(FRAME.settings, ACK, 0));
    } else if (type === FRAME.data) {
      takenBytes += payload.length;
      if ((flags & END_STREAM) !== 0) {
        answers.push(replyOn(stream));
      }
    }
  };
  const read = frameReader(take);
  socket.on("error", () => undefined);
  socket.on("data", (piece: Buffer) => {
    const rest = piece.subarray(prefaceBytes);
    prefaceBytes = Math.max(0, prefaceBytes - piece.length);
    read(rest);
    if (takenBytes > WINDOW_STEP_BYTES) {
      answers.push(windowUpdate(0, takenBytes));
      takenBytes = 0;
    }
    if (answers.length > 0) {
      socket.write(Buffer.concat(answers));
      answers = [];
    }
  });
  socket.write(settings([]));
});
server.listen(0, "127.0.0.1", () => {
  const address = server.address();
  process.stdout.write(`port ${typeof address === "object" ? address?.port : ""}\n`);
});
