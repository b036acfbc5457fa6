// Shows what a node wants the person at the page to know: a message in the corner, or a dialog on older pages.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

function show({ severity, summary, detail }) {
  const toast = app.extensionManager?.toast;
  if (toast) {
    toast.add({ severity, summary, detail, life: 15000 });
    return;
  }
  const text = document.createElement("span");
  text.textContent = `${summary}: ${detail}`;
  app.ui.dialog.show(text);
}

app.registerExtension({
  name: "SpectralDiffusion.Notices",
  setup() {
    api.addEventListener("spectral_diffusion.notice", (event) => show(event.detail));
  },
});
