// What the pages do in the browser: keep the state in the address, walk over tokens with the keys.
window.studio = {
  // Gradio opens its first tab before the address is read: until then nothing is written.
  asked: location.search,
  isRestored: false,

  // The address says what is shown, so that it can be kept and sent. Empty values are left out.
  remember(values) {
    if (!this.isRestored) return;
    const asked = new URLSearchParams(location.search);
    for (const [key, value] of Object.entries(values)) {
      const text = value == null ? "" : Array.isArray(value) ? value.join("\n") : String(value);
      text === "" ? asked.delete(key) : asked.set(key, text);
    }
    // A server refuses very long addresses: what would not come back is not promised, nor what was there before it.
    if (asked.toString().length >= 6000) for (const key of Object.keys(values)) asked.delete(key);
    const query = asked.toString();
    history.replaceState(null, "", query ? "?" + query : location.pathname);
  },

  // Clicks and keys in HTML of ours become events of its component.
  listen(element, trigger) {
    const act = (event) => {
      const concept = event.target.closest("[data-concept]");
      if (concept) return trigger("concept", { concept: concept.dataset.concept });
      const token = event.target.closest("[data-token]");
      if (!token) return;
      studio.choose(token);
      trigger("token", { token: Number(token.dataset.token) });
    };
    element.addEventListener("click", act);
    element.addEventListener("keydown", (event) => {
      const token = event.target.closest("[data-token]");
      if (!token) return;
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) {
        const all = [...token.parentElement.querySelectorAll("[data-token]")];
        const next = all[all.indexOf(token) + step];
        if (next) { token.tabIndex = -1; next.tabIndex = 0; next.focus(); }
        event.preventDefault();
      } else if (event.key === "Enter" || event.key === " ") {
        act(event);
        event.preventDefault();
      }
    });
  },

  choose(token) {
    for (const other of token.parentElement.querySelectorAll("[aria-pressed]")) other.removeAttribute("aria-pressed");
    token.setAttribute("aria-pressed", "true");
  },
};
