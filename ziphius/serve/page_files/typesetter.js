// The worker that typesets: one text at a time, each within its time.

const LOADING_MS = 15000;
const TEXT_MS = 2000;
const WORKER = new URL("worker/start.js", import.meta.url);

let worker = null;
let ready = null; // a promise: the worker has its packages
let last = Promise.resolve(); // the text before

// The blocks of `text` (worker/start.js says what they are). Throws an Error that says why there are none. `wanted` is
// asked when its turn comes; where nobody waits any more, null comes.
export function typeset(text, wanted) {
  const mine = last.then(async () => (wanted() ? await within(text) : null));
  last = mine.catch(() => {});
  return mine;
}

// Loads the worker before the first answer comes, which else would stay blank for a second.
export function warmUp() {
  (ready ??= start()).catch(() => {}); // who wants a text typeset tries again, and is told
}

async function within(text) {
  await (ready ??= start());
  const { blocks } = await reply(TEXT_MS, () => worker.postMessage(text));
  if (!blocks) throw new Error("it is nested too deeply");
  return blocks;
}

function start() {
  worker = new Worker(WORKER);
  return reply(LOADING_MS, () => {});
}

function reply(limit, ask) {
  return new Promise((resolve, reject) => {
    const fail = (why) => {
      worker.terminate();
      ready = null;
      reject(new Error(why));
    };
    const timer = setTimeout(() => fail("typesetting it takes too long"), limit);
    worker.onmessage = ({ data }) => {
      clearTimeout(timer);
      resolve(data);
    };
    worker.onerror = () => {
      clearTimeout(timer);
      fail("typesetting it failed");
    };
    ask();
  });
}
