package tui

// newScreens are the tabs in their order.
func newScreens(a *App) []Screen {
	return []Screen{newPromptScreen(a), newLensScreen(a), newMemoriesScreen(a), newModelScreen(a)}
}
