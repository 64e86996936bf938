// Export and import of conversations, and the deletion of all.

import { $ } from "./dom.js";
import { asides, eraseAsides } from "./store.js";
import { toast } from "./toast.js";

// `changed()` is called after an import, `removeAll()` when all are to go.
export function initArchive(library, changed, removeAll) {
  $("export").onclick = () => exportAll(library);
  $("import").onclick = () => $("import-file").click();
  $("import-file").onchange = async () => {
    const [file] = $("import-file").files;
    $("import-file").value = "";
    $("settings").close();
    if (file) await take(library, file, changed);
  };
  $("forget").onclick = () => {
    $("settings").close();
    removeAll();
  };
  if (asides().length) {
    toast("Something kept in this browser was damaged. It was set aside.", {
      Download: () => download("ziphius-damaged.json", JSON.stringify(asides())),
      Delete: eraseAsides,
    });
  }
}

export function exportAll(library) {
  download(`ziphius-conversations-${new Date().toISOString().slice(0, 10)}.json`, library.exported());
}

async function take(library, file, changed) {
  try {
    const { read, refused, kept } = await library.take(file);
    const some = `${read} conversation${read === 1 ? "" : "s"} imported`;
    const not = refused ? `; ${refused} damaged and left out` : "";
    toast(`${some}${not}.${kept ? "" : " This browser's room is full: some are here only until the page closes."}`);
  } catch (error) {
    toast(error.message);
  }
  changed();
}

function download(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  Object.assign(document.createElement("a"), { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}
