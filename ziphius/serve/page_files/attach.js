// Files in a question: text of any kind, read here and sent with its name.

const LARGEST = 256 * 1024; // bytes of a file
const MOST = 20;

// {files: [{name, text}], refused: [sentence]}; `have` files are there already.
export async function readFiles(list, have) {
  const files = [];
  const refused = [];
  for (const file of list) {
    try {
      if (have + files.length >= MOST) throw new Error(`a question takes ${MOST} files`);
      const name = file.name.replace(/[\p{Cc}\p{Cf}`]/gu, "").slice(0, 120) || "file";
      files.push({ name, text: await textOf(file) });
    } catch (error) {
      refused.push(`${file.name.slice(0, 120)}: ${error.message}.`);
    }
  }
  return { files, refused };
}

async function textOf(file) {
  if (file.size > LARGEST) throw new Error(`larger than ${LARGEST / 1024} kB`);
  let bytes = null;
  try {
    bytes = await file.arrayBuffer();
  } catch {
    throw new Error("it cannot be read (a folder?)");
  }
  let text = "";
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw new Error("no text in UTF-8");
  }
  if (text.includes("\0")) throw new Error("no text, but binary data");
  if (!text.trim()) throw new Error("it is empty");
  return text.replace(/\r\n?/g, "\n");
}
