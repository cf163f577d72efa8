// Tokens that jose signs, against a server that speaks the TokenReview API over HTTPS, and against key sets.
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer as createHttp } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import {
  createJwksVerifier,
  createTokenCache,
  createTokenReview,
  REMEMBERED_TOKENS_MAX,
  TOKEN_CHECKS_MAX,
  type TokenVerifier,
} from "@weightline/control-plane";
import { type CryptoKey, exportJWK, generateKeyPair, SignJWT } from "jose";
import t from "tap";
import { createAuthority } from "../../../test/support/certificates.ts";
import { type Api, ec, goodReview, ISSUER, rsa, send, signToken, startApi, USER } from "./token-review-server.ts";

const folder = mkdtempSync(`${tmpdir()}/weightline-tokens-`);
t.teardown(() => rmSync(folder, { recursive: true }));
const authority = createAuthority(`${folder}/ca`);
const AUDIENCES = ["weightline", "other"];

const tokenFile = `${folder}/own-token`;
writeFileSync(tokenFile, "own-token-1\n");
const reviewer = (api: URL, caFile = authority.certificate) => {
  const verifier = createTokenReview({ api, audiences: AUDIENCES, caFile, tokenFile });
  t.teardown(() => verifier.close());
  return verifier;
};
const never = new AbortController().signal;
/** The failure's code and words; and no token in them, whatever they are. */
async function refusal(token: string, check: () => unknown): Promise<{ code: string; message: string }> {
  try {
    await check();
  } catch (error) {
    const { code, message, value, cause, stack } = error as Error & { code: string; value: string };
    const told = [message, value, stack, (cause as Error | undefined)?.stack].find((text) => text?.includes(token));
    if (told !== undefined) {
      throw new Error(`the token is told: ${told}`);
    }
    return { code, message };
  }
  throw new Error("it was taken");
}

t.test("a review: what is asked, and what is answered", async (t) => {
  const api = await startApi(authority, t);
  const token = await signToken({ expS: 100 });
  const before = Date.now();
  const verified = await reviewer(api.url).verify(token, never);
  t.equal(verified.account, "ns:one");
  t.ok(verified.expiresAtMs > before + 98_000 && verified.expiresAtMs < before + 102_000);
  t.match(api.reviews, [
    { kind: "TokenReview", apiVersion: "authentication.k8s.io/v1", spec: { token, audiences: AUDIENCES } },
  ]);
  t.same(api.authorizations, ["Bearer own-token-1"]);
  writeFileSync(tokenFile, "own-token-2");
  await reviewer(api.url).verify(await signToken(), never);
  t.equal(api.authorizations.at(-1), "Bearer own-token-2", "its own token is read again");
  await reviewer(api.url).verify("an-opaque-token", never);
  t.equal(api.reviews.length, 3, "a token that is no JWT is for the API to know");
});

t.test("tokens that are refused, those that say it themselves without a question", async (t) => {
  const api = await startApi(authority, t);
  const verifier = reviewer(api.url);
  const asked = async (token: string) => {
    const before = api.reviews.length;
    const found = await refusal(token, () => verifier.verify(token, never));
    return { ...found, asked: api.reviews.length - before };
  };
  t.match(await asked(await signToken({ expS: -1 })), { code: "Unauthenticated", message: /has expired/, asked: 0 });
  t.match(await asked(await signToken({ aud: "api" })), {
    code: "Unauthenticated",
    message: /another audience/,
    asked: 0,
  });
  const answers: Array<[string, Api["answer"], object]> = [
    [
      "not authenticated",
      (reply, { spec }) => send(reply, 201, { kind: "TokenReview", status: { error: `bad ${spec.token}` } }),
      { code: "Unauthenticated" },
    ],
    [
      'authenticated: "true"',
      (reply) =>
        send(reply, 201, {
          kind: "TokenReview",
          status: { authenticated: "true", user: { username: USER }, audiences: AUDIENCES },
        }),
      { code: "Unauthenticated" },
    ],
    [
      "no audiences",
      (reply) => send(reply, 201, { kind: "TokenReview", status: { authenticated: true, user: { username: USER } } }),
      { code: "Unauthenticated", message: /did not say that it is for one of the audiences/ },
    ],
    [
      "another audience",
      (reply) =>
        send(reply, 201, {
          kind: "TokenReview",
          status: { authenticated: true, user: { username: USER }, audiences: ["api"] },
        }),
      { code: "Unauthenticated" },
    ],
    [
      "no user",
      (reply) => send(reply, 201, { kind: "TokenReview", status: { authenticated: true, audiences: AUDIENCES } }),
      { code: "Unavailable", message: /named no user/ },
    ],
    [
      "a person",
      (reply, review) => goodReview(reply, review, "jo@example.com"),
      { code: "PermissionDenied", message: /no service account/ },
    ],
    ["a node", (reply, review) => goodReview(reply, review, "system:node:n1"), { code: "PermissionDenied" }],
    ["more parts", (reply, review) => goodReview(reply, review, `${USER}:x`), { code: "PermissionDenied" }],
    [
      "no right to ask",
      (reply) => send(reply, 403, {}),
      { code: "Unavailable", message: /does not let the control plane ask/ },
    ],
    ["its own token is bad", (reply) => send(reply, 401, {}), { code: "Unavailable", message: /HTTP 401/ }],
    ["a fault", (reply) => send(reply, 500, {}), { code: "Unavailable", message: /HTTP 500/ }],
    [
      "another kind",
      (reply) => send(reply, 201, { kind: "Status", status: "Success" }),
      { code: "Unavailable", message: /no TokenReview/ },
    ],
    ["no JSON", (reply) => void reply.writeHead(201).end("<html>"), { code: "Unavailable", message: /no TokenReview/ }],
    ["null", (reply) => void reply.writeHead(201).end("null"), { code: "Unavailable", message: /no TokenReview/ }],
    [
      "half an answer",
      (reply) => void reply.writeHead(201, { "content-length": 1000 }).write('{"kind":', () => reply.destroy()),
      { code: "Unavailable", message: /does not answer/ },
    ],
    [
      "2 MiB",
      (reply) => void reply.writeHead(201).end(Buffer.alloc(2 * 1024 * 1024, " ")),
      { code: "Unavailable", message: /does not answer/ },
    ],
    ["a closed connection", (reply) => void reply.destroy(), { code: "Unavailable", message: /does not answer/ }],
  ];
  for (const [what, answer, wanted] of answers) {
    api.answer = answer;
    t.match(await asked(await signToken()), { ...wanted, asked: 1 }, what);
  }
});

t.test("an API that is away, slow, or somebody else", async (t) => {
  const api = await startApi(authority, t);
  const token = await signToken();
  api.answer = () => undefined;
  const stop = new AbortController();
  const slow = reviewer(api.url).verify(token, stop.signal);
  slow.catch(() => undefined);
  while (api.reviews.length === 0) {
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  stop.abort();
  t.match(await refusal(token, () => slow), { code: "Unavailable", message: /does not answer in time/ });
  api.answer = goodReview;
  const stranger = createAuthority(`${folder}/stranger`);
  const before = api.reviews.length;
  t.match(await refusal(token, () => reviewer(api.url, stranger.certificate).verify(token, never)), {
    code: "Unavailable",
  });
  t.match(
    await refusal(token, () => reviewer(new URL(api.url.href.replace("127.0.0.1", "localhost"))).verify(token, never)),
    {
      code: "Unavailable",
    },
    "a name that its certificate has not",
  );
  t.equal(api.reviews.length, before, "neither got the token");
  t.match(await refusal(token, () => reviewer(api.url, `${folder}/nowhere`).verify(token, never)), {
    code: "Unavailable",
  });
  api.stop();
  t.match(await refusal(token, () => reviewer(api.url).verify(token, never)), {
    code: "Unavailable",
    message: /does not answer/,
  });
});

/** A verifier whose answers are held until they are let go. */
function heldVerifier() {
  const asked: Array<{
    token: string;
    signal: AbortSignal;
    settle: PromiseWithResolvers<{ account: string; expiresAtMs: number }>;
  }> = [];
  const verifier: TokenVerifier = {
    verify(token, signal) {
      const settle = Promise.withResolvers<{ account: string; expiresAtMs: number }>();
      signal.addEventListener("abort", () => settle.reject(signal.reason));
      asked.push({ token, signal, settle });
      return settle.promise;
    },
    close: () => undefined,
  };
  return { asked, verifier };
}
const good = (expiresAtMs = Number.POSITIVE_INFINITY) => ({ account: "ns:one", expiresAtMs });

t.test("memory: one check for all who ask, then none; another for each other token", async (t) => {
  const { asked, verifier } = heldVerifier();
  const checks: string[] = [];
  const cache = createTokenCache({ verifier, ttlMs: 60_000, onCheck: (outcome) => checks.push(outcome) });
  const answers = Array.from({ length: 50 }, () => cache.check("secret-a"));
  t.equal(asked.length, 1);
  asked[0]?.settle.resolve(good());
  t.same(new Set((await Promise.all(answers)).map(({ account }) => account)), new Set(["ns:one"]));
  t.same(cache.check("secret-a"), good(), "at once");
  t.ok(cache.check("b") instanceof Promise);
  t.equal(asked.length, 2);
  t.same(checks, ["good"]);
  asked[1]?.settle.resolve(good());
});

t.test("memory: never past the token's end, never past its own time", async (t) => {
  const { asked, verifier } = heldVerifier();
  let nowMs = 1_000_000;
  const cache = createTokenCache({ verifier, ttlMs: 60_000, now: () => nowMs });
  const first = cache.check("secret-a");
  asked[0]?.settle.resolve(good(nowMs + 5000));
  await first;
  nowMs += 4999;
  t.same(cache.check("secret-a"), good(1_005_000), "still good");
  nowMs += 1;
  const second = cache.check("secret-a");
  t.ok(second instanceof Promise, "asked again at its end");
  asked[1]?.settle.resolve(good(1_005_000));
  t.match(
    await refusal("secret-a", () => second),
    { code: "Unauthenticated", message: /expired/ },
    "whatever the API says",
  );
  const short = createTokenCache({ verifier, ttlMs: 1 });
  const held = short.check("x");
  asked.at(-1)?.settle.resolve(good());
  await held;
  await new Promise((resolve) => setTimeout(resolve, 5));
  t.ok(short.check("x") instanceof Promise, "its own time is over");
  asked.at(-1)?.settle.resolve(good());
  const none = createTokenCache({ verifier, ttlMs: 0 });
  const once = none.check("x");
  asked.at(-1)?.settle.resolve(good());
  await once;
  t.ok(none.check("x") instanceof Promise, "0: each call asks");
  asked.at(-1)?.settle.resolve(good());
});

t.test("memory: what was refused is not asked again at once, and never stands in for what is good", async (t) => {
  const { asked, verifier } = heldVerifier();
  const cache = createTokenCache({ verifier, ttlMs: 60_000 });
  const fine = cache.check("good");
  asked[0]?.settle.resolve(good());
  await fine;
  const bad = cache.check("secret-bad");
  asked[1]?.settle.reject(new Error("a verifier's fault"));
  t.match(await refusal("secret-bad", () => bad), { code: "Internal" });
  t.match(await refusal("secret-bad", () => cache.check("secret-bad")), { code: "Internal" });
  t.equal(asked.length, 2, "not asked again");
  for (let i = 0; i < REMEMBERED_TOKENS_MAX + 500; i++) {
    const check = cache.check(`stranger ${i}`);
    asked.at(-1)?.settle.reject(new Error("no"));
    await Promise.resolve(check).catch(() => undefined);
  }
  t.equal(cache.size, REMEMBERED_TOKENS_MAX + 1, "no more than that");
  t.same(cache.check("good"), good(), "strangers pushed out nothing that is good");
});

t.test("memory: good ones have a bound too, and so have checks at the same time", async (t) => {
  const { asked, verifier } = heldVerifier();
  const cache = createTokenCache({ verifier, ttlMs: 60_000 });
  for (let i = 0; i < REMEMBERED_TOKENS_MAX + 10; i++) {
    const check = cache.check(`t${i}`);
    asked.at(-1)?.settle.resolve(good());
    await check;
  }
  t.equal(cache.size, REMEMBERED_TOKENS_MAX);
  t.ok(cache.check("t0") instanceof Promise, "the oldest went");
  const before = asked.length;
  const many = Array.from({ length: TOKEN_CHECKS_MAX - 1 }, (_, i) => cache.check(`m${i}`));
  t.match(await refusal("secret-more", () => cache.check("secret-more")), {
    code: "Unavailable",
    message: /others are being checked/,
  });
  for (const { settle } of asked.slice(before - 1)) {
    settle.resolve(good());
  }
  await Promise.all(many);
  const again = cache.check("secret-more");
  asked.at(-1)?.settle.resolve(good());
  t.same(await again, good(), "then it is taken");
});

const setFile = `${folder}/keys.json`;
const writeKeys = async (...keys: Array<[string, CryptoKey]>) =>
  writeFileSync(
    setFile,
    JSON.stringify({
      keys: await Promise.all(keys.map(async ([kid, key]) => ({ ...(await exportJWK(key)), kid, use: "sig" }))),
    }),
  );
const NO_API = { caFile: "", tokenFile: "" };

t.test("a key set: RS256 and ES256 tokens, and what is refused", async (t) => {
  await writeKeys(["RS256", rsa.publicKey], ["ES256", ec.publicKey]);
  const verifier = createJwksVerifier({ keys: { file: setFile }, issuer: ISSUER, audiences: AUDIENCES, ...NO_API });
  t.match(await verifier.verify(await signToken(), never), { account: "ns:one" });
  t.match(await verifier.verify(await signToken({ algorithm: "ES256", aud: ["x", "other"] }), never), {
    account: "ns:one",
  });
  const strange = (await generateKeyPair("RS256")).privateKey;
  const unsigned = `${Buffer.from('{"alg":"none"}').toString("base64url")}.${(await signToken()).split(".")[1]}.`;
  const shared = await new SignJWT({})
    .setProtectedHeader({ alg: "HS256", kid: "RS256" })
    .setSubject(USER)
    .setAudience("weightline")
    .setIssuer(ISSUER)
    .setExpirationTime("1h")
    .sign(Buffer.from(readFileSync(setFile)));
  const endless = await new SignJWT({})
    .setProtectedHeader({ alg: "RS256", kid: "RS256" })
    .setSubject(USER)
    .setAudience("weightline")
    .setIssuer(ISSUER)
    .sign(rsa.privateKey);
  const [head = "", body = "", end = ""] = (await signToken()).split(".");
  const changed = [
    head,
    Buffer.from(Buffer.from(body, "base64url").toString().replace(":one", ":two")).toString("base64url"),
    end,
  ].join(".");
  const refused: Array<[string, string, object]> = [
    ["another key", await signToken({ key: strange }), { code: "Unauthenticated", message: /no known key signed it/ }],
    ["an unknown key's name", await signToken({ kid: "gone" }), { code: "Unauthenticated", message: /no known key/ }],
    ["changed", changed, { code: "Unauthenticated", message: /no known key signed it/ }],
    ["expired", await signToken({ expS: -1 }), { code: "Unauthenticated", message: /expired/ }],
    ["another audience", await signToken({ aud: "api" }), { code: "Unauthenticated", message: /claim aud/ }],
    ["another issuer", await signToken({ iss: "https://else" }), { code: "Unauthenticated", message: /claim iss/ }],
    ["without an end", endless, { code: "Unauthenticated", message: /claim exp/ }],
    ["not signed", unsigned, { code: "Unauthenticated" }],
    ["signed by the public keys as a secret", shared, { code: "Unauthenticated" }],
    ["no token", "nonsense", { code: "Unauthenticated" }],
    ["a person", await signToken({ sub: "jo" }), { code: "PermissionDenied" }],
  ];
  for (const [what, token, wanted] of refused) {
    t.match(await refusal(token, () => verifier.verify(token, never)), wanted, what);
  }
});

t.test("a key set's file that is away or broken lets nobody in", async (t) => {
  const token = await signToken();
  for (const content of [undefined, "{", '{"keys":1}', "null"]) {
    const file = `${folder}/broken.json`;
    if (content !== undefined) {
      writeFileSync(file, content);
    }
    const verifier = createJwksVerifier({ keys: { file }, issuer: ISSUER, audiences: AUDIENCES, ...NO_API });
    t.match(await refusal(token, () => verifier.verify(token, never)), { code: "Unavailable" }, String(content));
  }
});

t.test("a key set from an address: read once, and unavailable when it is", async (t) => {
  await writeKeys(["RS256", rsa.publicKey]);
  let status = 503;
  let asked = 0;
  const server = createHttp((_request, reply) => {
    asked += 1;
    reply.writeHead(status).end(readFileSync(setFile));
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  t.teardown(() => server.close());
  const url = new URL(`http://127.0.0.1:${(server.address() as AddressInfo).port}/keys`);
  const open = () => createJwksVerifier({ keys: { url }, issuer: ISSUER, audiences: AUDIENCES, ...NO_API });
  const token = await signToken();
  t.match(await refusal(token, () => open().verify(token, never)), { code: "Unavailable" });
  status = 200;
  const verifier = open();
  const before = asked;
  t.match(await verifier.verify(token, never), { account: "ns:one" });
  t.match(await verifier.verify(await signToken(), never), { account: "ns:one" });
  t.equal(asked, before + 1);
  server.close();
  server.closeAllConnections();
  t.match(await refusal(token, () => open().verify(token, never)), { code: "Unavailable" });
});
