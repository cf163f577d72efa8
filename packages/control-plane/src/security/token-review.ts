import { createHttpApi, type HttpApiOptions } from "./kubernetes-api.ts";
import { accountOf, badToken, cannotCheck, claimsOf, expiryOf, type TokenVerifier } from "./token.ts";

export interface TokenReviewOptions extends HttpApiOptions {
  /** Address of the Kubernetes API. */
  api: URL;
  audiences: readonly string[];
}

/** The parts of a TokenReview's status that count. */
interface ReviewStatus {
  authenticated?: unknown;
  user?: { username?: unknown };
  audiences?: unknown;
}

const PATH = "/apis/authentication.k8s.io/v1/tokenreviews";
const CREATED = 201;
const FORBIDDEN = 403;
const API_WAY_OUT = "try again; see whether the Kubernetes API answers the control plane";

/** What needs no question to the API: a token that says itself that it is over, or for somebody else. */
function refuseByItself(token: string, audiences: readonly string[]): number {
  const claims = claimsOf(token);
  const expiresAtMs = expiryOf(claims);
  if (expiresAtMs <= Date.now()) {
    throw badToken("it has expired");
  }
  const own = claims?.aud === undefined ? undefined : [claims.aud].flat();
  if (own !== undefined && !own.some((audience) => audiences.includes(audience))) {
    throw badToken("it is for another audience", `get a token for ${audiences.join(" or ")}`);
  }
  return expiresAtMs;
}

function statusOf(text: string): ReviewStatus {
  let answer: { kind?: unknown; status?: unknown } | null;
  try {
    answer = JSON.parse(text);
  } catch {
    answer = null;
  }
  if (answer?.kind !== "TokenReview" || typeof answer.status !== "object" || answer.status === null) {
    throw cannotCheck("the Kubernetes API answered with no TokenReview", API_WAY_OUT);
  }
  return answer.status;
}

function readStatus({ authenticated, user, audiences }: ReviewStatus, wanted: readonly string[]): string {
  if (authenticated !== true) {
    throw badToken("the Kubernetes API does not know it as a token of one of the audiences");
  }
  // An API that knows no audiences takes any token for its own: that is not what was asked.
  if (!Array.isArray(audiences) || !audiences.some((audience) => wanted.includes(audience))) {
    throw badToken("the Kubernetes API did not say that it is for one of the audiences");
  }
  if (typeof user?.username !== "string") {
    throw cannotCheck("the Kubernetes API named no user", API_WAY_OUT);
  }
  return accountOf(user.username);
}

/** Asks the Kubernetes API whose token it is. */
export function createTokenReview(options: TokenReviewOptions): TokenVerifier {
  const { audiences } = options;
  const http = createHttpApi(options);
  const url = new URL(PATH, options.api);
  return {
    async verify(token, signal) {
      const expiresAtMs = refuseByItself(token, audiences);
      const review = { apiVersion: "authentication.k8s.io/v1", kind: "TokenReview", spec: { token, audiences } };
      let answer: { status: number; text: string };
      try {
        answer = await http.ask(url, review, signal);
      } catch (error) {
        const why = signal.aborted ? "does not answer in time" : "does not answer";
        throw cannotCheck(`the Kubernetes API ${why}`, API_WAY_OUT, error);
      }
      if (answer.status === FORBIDDEN) {
        throw cannotCheck(
          "the Kubernetes API does not let the control plane ask",
          "give its service account the cluster role system:auth-delegator, or use security.jwks_file",
        );
      }
      if (answer.status !== CREATED) {
        throw cannotCheck(`the Kubernetes API answered with HTTP ${answer.status}`, API_WAY_OUT);
      }
      return { account: readStatus(statusOf(answer.text), audiences), expiresAtMs };
    },
    close: () => http.close(),
  };
}
