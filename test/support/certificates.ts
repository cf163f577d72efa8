import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";

/** An authority of one test run, in a folder of its own. */
export interface Authority {
  /** Path of its certificate. */
  readonly certificate: string;
  /** Signs a certificate; gives the paths of chain and key, which are replaced if they are there. */
  sign(name: string, options?: SignOptions): Signed;
}

export interface Signed {
  chain: string;
  key: string;
}

export interface SignOptions {
  /** Subject alternative names, like `URI:spiffe://a/b` or `DNS:c`; none when absent. */
  names?: readonly string[];
  /** Seconds from now to its beginning and end. */
  fromS?: number;
  toS?: number;
  /** Extended key usage; both by default. */
  usage?: string;
}

const DAY_S = 86_400;

/** Time as `openssl x509 -not_before` and `ca -startdate` take it. */
function stamp(inS: number): string {
  return `${new Date(Date.now() + inS * 1000).toISOString().replace(/[-:T]|\.\d+/g, "")}`;
}

function openssl(parameters: readonly string[], input = ""): string {
  return execFileSync("openssl", parameters, { input, encoding: "utf8", stdio: ["pipe", "pipe", "pipe"] });
}

function newKey(path: string): void {
  openssl(["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", path]);
}

/** Makes an authority by openssl; `folder` is made. */
export function createAuthority(folder: string, subject = "weightline test"): Authority {
  mkdirSync(folder, { recursive: true });
  const key = `${folder}/ca.key`;
  const certificate = `${folder}/ca.crt`;
  newKey(key);
  openssl(["req", "-new", "-x509", "-key", key, "-subj", `/CN=${subject}`, "-days", "2", "-out", certificate]);
  writeFileSync(`${folder}/index.txt`, "");
  writeFileSync(`${folder}/index.txt.attr`, "unique_subject = no\n");
  writeFileSync(
    `${folder}/ca.conf`,
    [
      "[ca]",
      "default_ca = ours",
      "[ours]",
      `database = ${folder}/index.txt`,
      `new_certs_dir = ${folder}`,
      "rand_serial = yes",
      "default_md = sha256",
      "policy = any",
      "email_in_dn = no",
      "[any]",
      "commonName = supplied",
    ].join("\n"),
  );
  return {
    certificate,
    sign(name, { names = [], fromS = -60, toS = DAY_S, usage = "serverAuth, clientAuth" } = {}) {
      const paths = { chain: `${folder}/${name}.crt`, key: `${folder}/${name}.key` };
      const fresh = { chain: `${paths.chain}.new`, key: `${paths.key}.new` };
      const extensions = [
        "[names]",
        "basicConstraints = critical, CA:false",
        `extendedKeyUsage = ${usage}`,
        ...(names.length === 0 ? [] : ["subjectAltName = @list", "[list]"]),
        // A section's value may have commas, as a name may.
        ...names.map((one, i) => one.replace(":", `.${i} = `)),
      ];
      writeFileSync(`${folder}/${name}.conf`, extensions.join("\n"));
      newKey(fresh.key);
      openssl(["req", "-new", "-key", fresh.key, "-subj", `/CN=${name}`, "-out", `${folder}/${name}.csr`]);
      openssl([
        "ca",
        "-batch",
        "-notext",
        ...["-config", `${folder}/ca.conf`],
        ...["-cert", certificate, "-keyfile", key],
        ...["-in", `${folder}/${name}.csr`, "-out", fresh.chain],
        ...["-startdate", stamp(fromS), "-enddate", stamp(toS)],
        ...["-extfile", `${folder}/${name}.conf`, "-extensions", "names"],
      ]);
      renameSync(fresh.key, paths.key);
      renameSync(fresh.chain, paths.chain);
      return paths;
    },
  };
}

/** The texts of a signed certificate, for tls.connect. */
export function readSigned({ chain, key }: Signed): { cert: string; key: string } {
  return { cert: readFileSync(chain, "utf8"), key: readFileSync(key, "utf8") };
}
