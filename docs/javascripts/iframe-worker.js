// Search runs in a worker. Browsers start none for a page that is opened as a file: there it runs in a hidden frame.
// mkdocs-material would load a script from another host for this.
if (location.protocol === "file:")
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      this.inside = frame.contentWindow
      this.inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      const load = address => new Promise((done, failed) => {
        const script = this.inside.document.createElement("script")
        Object.assign(script, { src: address, onload: done, onerror: failed })
        this.inside.document.body.append(script)
      })
      this.inside.importScripts = (...addresses) =>
        addresses.reduce((before, address) => before.then(() => load(address)), Promise.resolve())
      this.loaded = load(new URL(url, location))
    }
    postMessage(data) {
      this.loaded.then(() => this.inside.dispatchEvent(new this.inside.MessageEvent("message", { data })))
    }
    terminate() { this.inside.frameElement.remove() }
  }
