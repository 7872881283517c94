// Runs a client's checks and prints what each gave: a line of JSON, for the test that started it.

export const QUESTION = "what goes up must come down";
export const ASK_WEATHER = 'call weather {"city": "Oslo"}'; // echo does as it is told; a model may
export const MODEL = process.env.MODEL;
export const EMBEDDER = process.env.EMBEDDER;
export const WRONG_KEY = "canopy_wrong_key";
export const UNKNOWN_MODEL = "no-such-model";
export const LONG = 5000; // words: nearly a minute, so a stream that ends sooner was cancelled
const STOP_MS = 30_000; // on a busy machine, and well before that stream would end

export async function main(checks) {
  for (const name of process.argv.slice(2)) {
    const line = { check: name };
    try {
      line.fact = await checks[name]();
    } catch (error) {
      line.error = describe(error);
    }
    console.log(JSON.stringify(line));
  }
}

export async function refusal(act) {
  let result;
  try {
    result = await act();
  } catch (error) {
    return describe(error);
  }
  throw new Error(`this call should have failed: ${JSON.stringify(result)}`);
}

function describe(error) {
  const cause = error.lastError ?? error; // the AI SDK's, after its retries
  const status = cause.status ?? cause.statusCode ?? null;
  return { kind: cause.constructor.name, status, message: String(cause.message).slice(0, 2000) };
}

export async function secondsUntilIdle() {
  const headers = { Authorization: `Bearer ${process.env.OPENAI_API_KEY}` };
  const began = performance.now();
  while (performance.now() - began < STOP_MS) {
    const tree = await (await fetch(`${process.env.CANOPY_URL}/api/tree`, { headers })).json();
    if (tree.nodes.every((node) => node.running === 0)) return (performance.now() - began) / 1000;
    await new Promise((resume) => setTimeout(resume, 20));
  }
  throw new Error(`a slot was still taken after ${STOP_MS} ms`);
}
