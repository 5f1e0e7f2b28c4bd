// TensorBoard's entry: loads the page's own files, in their order, and starts it.
const at = (name) => new URL(name, import.meta.url).href;

function load(tag, properties) {
  return new Promise((done) => {
    const node = Object.assign(document.createElement(tag), properties);
    node.onload = node.onerror = done;
    document.head.append(node);
  });
}

export async function render() {
  for (const name of ["vendor/uPlot.min.css", "style.css"]) {
    await load("link", { rel: "stylesheet", href: at(name) });
  }
  const scripts = "{scripts}".split(" "); // what serves this file fills them in
  for (const name of scripts) await load("script", { src: at(name) });
  await window.KLM.start(window.KLM.live(at("api/")));
}
