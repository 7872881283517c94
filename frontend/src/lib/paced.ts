/**
 * Passes texts on, for listeners who must not be flooded: the first and an empty one at once, then, whatever came in
 * between, the newest after every `ms`.
 */
export function paced(say: (text: string) => void, ms: number): { tell: (text: string) => void; stop: () => void } {
  let newest = "";
  let said = "";
  let timer: ReturnType<typeof setTimeout> | undefined;
  const stop = (): void => {
    clearTimeout(timer);
    timer = undefined;
  };
  const pass = (): void => {
    timer = undefined;
    if (newest === said) return;
    said = newest;
    say(newest);
    if (newest !== "") timer = setTimeout(pass, ms);
  };
  return {
    stop,
    tell: (text) => {
      newest = text;
      if (text === "") stop();
      if (timer === undefined) pass();
    },
  };
}
