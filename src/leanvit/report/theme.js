// Before anything is drawn: the theme that was chosen last time.
try { const kept = localStorage.getItem("leanvit-theme"); if (kept === "light" || kept === "dark") document.documentElement.dataset.theme = kept; } catch {}
