// Keeps the parts of a page that change as they are now: asks for the page again and swaps them in.
(function () {
  "use strict";
  var live = document.querySelector("[data-aq-live]");
  if (!live) return;
  var toggle = document.querySelector("[data-aq-toggle]");
  var every = Number(live.dataset.aqLive) * 1000;
  function open(part) {
    return Array.from(part.querySelectorAll("details[open][id]"), function (one) { return one.id; });
  }
  async function refresh() {
    // Not under somebody's hands, and not in a tab that nobody looks at.
    var busy = document.hidden || (toggle && !toggle.checked) || document.querySelector(".aq-act[open]");
    if (!busy) {
      try {
        var answer = await fetch(window.location.href, { credentials: "same-origin" });
        if (answer.ok) {
          var page = new DOMParser().parseFromString(await answer.text(), "text/html");
          document.querySelectorAll("[data-aq-part]").forEach(function (part) {
            var fresh = page.querySelector('[data-aq-part="' + part.dataset.aqPart + '"]');
            if (fresh && fresh.innerHTML !== part.innerHTML) {
              var kept = open(part);
              var held = part.contains(document.activeElement) && document.activeElement.getAttribute("href");
              part.innerHTML = fresh.innerHTML;
              // Who goes through it by keyboard stays where they are.
              var again = held && part.querySelector('a[href="' + CSS.escape(held) + '"]');
              if (again) again.focus({ preventScroll: true });
              kept.forEach(function (id) {
                var one = document.getElementById(id);
                if (one) one.open = true;
              });
            }
          });
        }
      } catch (error) { /* away for a moment; the next round asks again */ }
    }
    window.setTimeout(refresh, every);
  }
  window.setTimeout(refresh, every);
})();
