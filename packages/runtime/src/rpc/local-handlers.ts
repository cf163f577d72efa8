import type { IncomingMessage, ServerResponse } from "node:http";
import { create, type DescMessage, type DescMethod, type MessageShape } from "@bufbuild/protobuf";
import { Code, ConnectError, type ContextValues } from "@connectrpc/connect";
import { createMethodSerializationLookup, encodeEnvelope } from "@connectrpc/connect/protocol";
import {
  contentTypeStreamJson,
  contentTypeStreamProto,
  contentTypeUnaryJson,
  contentTypeUnaryProto,
  parseContentType,
  parseTimeout,
} from "@connectrpc/connect/protocol-connect";
import type { ActiveList } from "../active-list.ts";
import { WeightlineError } from "../error.ts";
import { type CallFailure, failCall } from "./call-failure.ts";
import { drained } from "./drained.ts";
import type { Handler } from "./grpc-handlers.ts";
import { CALL_OVER } from "./lazy-context.ts";
import { STREAM_ENDED_WELL, send, streamEnd, unaryAnswer } from "./local-answers.ts";
import { LocalContext } from "./local-context.ts";
import { bodyMaxBytes, checkEncoding, openEnvelope, readBody } from "./local-request.ts";
import { malformedRequest } from "./rpc-error.ts";

/** What all calls of a server share. */
export interface LocalSurroundings {
  /** Bytes of one message. */
  maxMessageBytes: number;
  /** Calls that run, to be ended when the program stops. */
  running: ActiveList<LocalContext>;
  /** Aborted when the program stops. */
  shutdown: AbortSignal;
  contextValues: (request: IncomingMessage) => ContextValues;
  onFailure: ((failure: CallFailure) => void) | undefined;
}

/** What a call is known by in the log. */
export interface NumberedCall {
  readonly id: string;
  /** Its failure was told. */
  failed: boolean;
}

/** One HTTP request, while it is served. */
export interface LocalRequest {
  readonly request: IncomingMessage;
  readonly response: ServerResponse;
  readonly call: NumberedCall;
}

/** Serves a call; resolves when it is over, and never rejects. */
export type LocalHandler = (served: LocalRequest) => Promise<void>;

type Message = MessageShape<DescMessage>;

/** Words that the codec of binary messages begins with. */
const UNDECODABLE = /^parse binary: /;
/** What a timer takes; by HTTP's header it could be more. */
const TIMER_MAX_MS = 2 ** 31 - 1;
/** Its caller closed the connection; one for all, since an error is dear to make. */
const CALLER_LEFT = new WeightlineError("Cancelled", "the caller's connection ended");

function serializationOf(method: DescMethod, maxMessageBytes: number) {
  const limits = { readMaxBytes: maxMessageBytes, writeMaxBytes: 0xffffffff };
  return createMethodSerializationLookup(method, undefined, undefined, limits);
}

function timeoutOf(request: IncomingMessage): number | undefined {
  const header = request.headers["connect-timeout-ms"];
  if (header === undefined) {
    return undefined;
  }
  const { timeoutMs, error } = parseTimeout(String(header), Number.MAX_SAFE_INTEGER);
  if (error !== undefined) {
    throw error;
  }
  return timeoutMs;
}

/**
 * Writes what comes at once with one system call: it leaves when nothing more comes by itself. Until then Node would send
 * the head, each message and the end one by one, and wake the reader each time.
 */
function holdBriefly({ socket }: ServerResponse): void {
  if (socket !== null && socket.writableCorked === 0) {
    socket.cork();
    process.nextTick(() => socket.uncork());
  }
}

/** Whether an answer can still reach its caller. */
function isGone(response: ServerResponse): boolean {
  return response.destroyed || response.closed;
}

/**
 * A method over HTTP/1.1 in Connect's form. Connect's own handler makes up to a dozen generator functions for each call; V8 gives
 * each a map among the old objects, and what that holds (the whole call) stays until the next full collection.
 */
export function createLocalHandler(
  method: DescMethod,
  handler: Handler,
  surroundings: LocalSurroundings,
): LocalHandler {
  const { maxMessageBytes, running, shutdown, onFailure } = surroundings;
  const name = `${method.parent.typeName}/${method.name}`;
  const isStream = method.methodKind === "server_streaming";
  const serialization = serializationOf(method, maxMessageBytes);
  const maxBytes = bodyMaxBytes(maxMessageBytes, isStream);

  const decode = (body: Buffer, isBinary: boolean): unknown => {
    try {
      return serialization.getI(isBinary).parse(isStream ? openEnvelope(body) : body);
    } catch (error) {
      const why = error instanceof ConnectError ? error.rawMessage : (error as Error).message;
      throw malformedRequest(method.input.typeName, why.replace(UNDECODABLE, ""));
    }
  };

  const encode = (message: unknown, isBinary: boolean): Uint8Array =>
    serialization.getO(isBinary).serialize(create(method.output, message as Message));

  const answerOne = async (served: LocalRequest, context: LocalContext, input: unknown, isBinary: boolean) => {
    const body = encode(await handler(input, context), isBinary);
    if (!isGone(served.response)) {
      send(served.response, {
        status: 200,
        contentType: isBinary ? contentTypeUnaryProto : contentTypeUnaryJson,
        body,
      });
    }
  };

  const answerMany = async ({ response }: LocalRequest, context: LocalContext, input: unknown, isBinary: boolean) => {
    for await (const item of handler(input, context) as AsyncIterable<unknown>) {
      if (isGone(response)) {
        return;
      }
      const message = encodeEnvelope(0, encode(item, isBinary));
      holdBriefly(response);
      if (!response.headersSent) {
        response.writeHead(200, { "content-type": isBinary ? contentTypeStreamProto : contentTypeStreamJson });
      }
      if (!response.write(message)) {
        await drained(response);
      }
    }
  };

  /** Ends the answer; a unary one that went well has ended already. */
  const finish = ({ response }: LocalRequest, error: ConnectError | undefined, isBinary: boolean) => {
    if (isGone(response)) {
      return;
    }
    if (isStream) {
      if (!response.headersSent) {
        response.writeHead(200, { "content-type": isBinary ? contentTypeStreamProto : contentTypeStreamJson });
      }
      response.end(error === undefined ? STREAM_ENDED_WELL : streamEnd(error));
    } else if (error !== undefined) {
      send(response, unaryAnswer(error));
    }
  };

  const run = async (served: LocalRequest, context: LocalContext, isBinary: boolean) => {
    checkEncoding(served.request, isStream);
    const input = decode(await readBody(served.request, maxBytes), isBinary);
    await (isStream ? answerMany : answerOne)(served, context, input, isBinary);
  };

  return async (served) => {
    const { request, response, call } = served;
    const type = parseContentType(request.headers["content-type"] ?? "");
    if (request.method !== "POST") {
      response.writeHead(405, { allow: "POST", "content-length": 0 }).end();
      return;
    }
    if (type === undefined || type.stream !== isStream) {
      response.writeHead(415, { "content-length": 0 }).end();
      return;
    }
    let timer: NodeJS.Timeout | undefined;
    let context: LocalContext | undefined;
    try {
      const timeoutMs = timeoutOf(request);
      const made = new LocalContext(method, request, timeoutMs, () => surroundings.contextValues(request));
      context = made;
      running.add(made);
      if (timeoutMs !== undefined) {
        const late = () => made.end(new ConnectError("the call's deadline is over", Code.DeadlineExceeded));
        timer = setTimeout(late, Math.min(timeoutMs, TIMER_MAX_MS));
      }
      response.once("close", () => made.end(CALLER_LEFT));
      if (shutdown.aborted) {
        made.end(shutdown.reason);
      }
      await run(served, made, type.binary);
      finish(served, undefined, type.binary);
    } catch (error) {
      call.failed = true;
      finish(served, failCall(name, error, call.id, onFailure), type.binary);
    } finally {
      clearTimeout(timer);
      if (context !== undefined) {
        running.delete(context);
        context.end(CALL_OVER);
      }
    }
  };
}
