// If a drawing ever kills the page, the next start must not draw the same again: a mark stands in the browser's storage
// while the page draws, and a start that finds it shows all texts as they are.

const MARK = "ziphius.drawing";

export let plainOnly = marked();
let drawings = 0;

// Call it before anything that a model wrote is put on the page.
export function drawing() {
  if (document.hidden) return; // nothing is laid out
  drawings += 1;
  set(true);
  requestAnimationFrame(() => setTimeout(drawn));
}

export function formatAgain() {
  plainOnly = false;
  set(false);
}

function drawn() {
  drawings -= 1;
  if (drawings <= 0) set(false);
}

function marked() {
  try {
    return localStorage.getItem(MARK) !== null;
  } catch {
    return false;
  }
}

function set(on) {
  try {
    if (on) localStorage.setItem(MARK, "1");
    else localStorage.removeItem(MARK);
  } catch {
    // a browser without storage keeps no conversations either
  }
}

addEventListener("pagehide", () => set(false));
document.addEventListener("visibilitychange", () => document.hidden && set(false)); // no frame comes to do it
