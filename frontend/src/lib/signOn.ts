/** Logging in at an OpenID provider: the way there, and what the way back says if it did not work. */

const PROBLEMS = {
  failed: "login.signOnFailed",
  not_admitted: "login.notAdmitted",
  unavailable: "login.signOnUnavailable",
} as const;

type Problem = (typeof PROBLEMS)[keyof typeof PROBLEMS];

/** The link to follow; the provider sends the browser back to the page that it left. */
export function signOnAddress(address: string, place: Pick<Location, "pathname" | "search"> = location): string {
  return `${address}?next=${encodeURIComponent(place.pathname + place.search)}`;
}

/** The sentence for an address with `?sign_on=REASON`. */
export function signOnProblem(search: string): Problem | null {
  const reason = new URLSearchParams(search).get("sign_on");
  if (reason === null) return null;
  return Object.hasOwn(PROBLEMS, reason) ? PROBLEMS[reason as keyof typeof PROBLEMS] : PROBLEMS.failed;
}

/** The same, once: it leaves the address, so that a reload does not say it again. */
export function takeSignOnProblem(): Problem | null {
  const problem = signOnProblem(location.search);
  if (problem !== null) history.replaceState(history.state, "", location.pathname);
  return problem;
}
