const OPEN = /^\s*(?:<think(?:ing)?>|<\|channel>thought)/;
const CLOSE = /<\/think(?:ing)?>|<channel\|>/;
/** The end of thinking whose beginning stood in the prompt: some models' templates open it themselves. */
const LONE_CLOSE = /^\s*<\/think(?:ing)?>\s*$/m;

/** A message in a channel, as gpt-oss writes all of its answer. */
const CHANNEL = /<\|channel\|>\s*(\w*)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>/g;
const CHANNEL_END = /<\|(?:end|return|call|start|channel)\|>/;

export interface Thinking {
  /** What the model thought before its answer; null if it did not, or does not say so. */
  thought: string | null;
  /** The thinking has ended. */
  finished: boolean;
  answer: string;
}

function splitChannels(text: string): Thinking {
  const thoughts: string[] = [];
  const said: string[] = [];
  let finished = false;
  for (const head of text.matchAll(CHANNEL)) {
    const [content] = text.slice(head.index + head[0].length).split(CHANNEL_END, 1);
    finished = head[1] !== "analysis";
    (finished ? said : thoughts).push((content ?? "").trim());
  }
  return { thought: thoughts.join("\n\n") || null, finished, answer: said.join("\n\n") };
}

/** Cut an answer into what stands between `<think>` and `</think>` at its beginning, or Gemma's marks, and the rest. */
export function splitThinking(text: string): Thinking {
  if (/^\s*<\|channel\|>/.test(text)) return splitChannels(text);
  const open = OPEN.exec(text);
  const rest = open ? text.slice(open[0].length) : text;
  const close = (open ? CLOSE : LONE_CLOSE).exec(rest);
  if (close) {
    const answer = rest.slice(close.index + close[0].length).replace(/^\s*\n/, "");
    return { thought: rest.slice(0, close.index).trim(), finished: true, answer: answer.trimStart() };
  }
  if (open) return { thought: rest.trimStart(), finished: false, answer: "" };
  return { thought: null, finished: true, answer: text };
}
