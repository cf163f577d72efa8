/** One of OpenSSL's errors: the thread's address, a number, library and function, the reason, and a line of its sources. */
const OPENSSL_ERROR = /[0-9A-F]{8,16}:error:[0-9A-F]{8}:[^:\n]*:[^:\n]*:([^:\n]*)(?::[^\n]*)?\n?/g;

const REASONS: Readonly<Record<string, string>> = {
  "wrong version number": "the other side speaks no TLS",
  "unsupported protocol": "the other side speaks no TLS 1.3",
  "tlsv1 alert protocol version": "the other side does not speak this version of TLS",
};

/** An error's text for people: of what OpenSSL says only the reason stays, as it begins with a memory address. */
export function plainTlsWords(text: string): string {
  return text.replace(OPENSSL_ERROR, (_all, reason: string) => REASONS[reason] ?? reason).trim();
}
